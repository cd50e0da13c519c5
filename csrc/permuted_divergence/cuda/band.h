// permuted_divergence of two modalities whose donors are shifts of the rows: rows next to each
// other share all donors but one, so that a block of 32 rows meets 32 donors of each in a band of
// 63 rows, which it holds in shared memory.
//
// With A' = A - its row's largest and E = 2^A' as the rows' powers, B those of the bias, m the
// modality taken from donor j, o the other one and omega what row i weighs, all of it [C]:
//
//     a = E_m[i],  e = E_m[j],  G = E_o[i] B,  S = sum G a,  Z = sum G e,  r = S / Z
//     g = omega G / S,   p = G a / S,   q = G e / Z,   mean = (p + q) / 2
//     L = log2((a / e + r) / 2)
//
//     log2(q / mean) = log2 r - L,            log2(p / mean) = A'[i] - A'[j] - L
//
//     kappa = sum q L = r sum g e L / omega,  KL(q | mean) / ln2 = log2 r - kappa
//
//     u = q (kappa - L), the gradient to the perturbed logits over ln2 / 2
//
// A class of a pair costs one logarithm and no exponential. What is linear in it is left out of the
// loop over classes, which has to run before kappa is known, and added by the last kernel:
//
//     masses   Z, and whether pairs are near each other
//     terms    sum r e L for the rows, sum r g L for the donors, log2(p / mean), kappa
//     centre   sum r kappa e and sum r kappa g; the gradients
//
// L is off by a rounding of a / e, which nearby rows notice in first order. So a tile of shifts
// that holds a near pair goes through a loop that takes log2(q / mean) from d = log2(q / p), a
// difference of logits, where d is small; that is right for every pair and costs twice as much. A
// tile without one, and without a pair that counts nothing, leaves A'[i] - A'[j] to sums that slide
// over it.
//
// Eight lanes with a class each have a tile of 8 rows and 8 shifts, 15 donors: the sums over the
// classes are registers of 64 pairs, those over the pairs are shared memory. A warp has a tile of
// shifts and its four groups of lanes the four of rows; the two halves of a block share the
// classes. Groups next to each other have donors in common and add to two copies; warps take turns.
// So every sum has one order.
#pragma once

#include <cuda_runtime_api.h>

#include "core/lane.h"
#include "cuda/quads.h"
#include "divergence/rows.h"
#include "permuted_divergence/band_problem.h"
#include "permuted_divergence/cuda/kernels.h"

namespace mcr {
namespace cuda {

constexpr int kTile = 8;                    // rows, and shifts, of a tile
constexpr int kPairs = kTile * kTile;       // of a tile; pair [shift, row]
constexpr int kTileDonors = 2 * kTile - 1;  // that a tile meets
constexpr int kTiles = kBandRows / kTile;   // of rows, and of shifts, of a block
constexpr int kBandThreads = 256;           // [half, tile of shifts, tile of rows, class]
constexpr int kChunk = 64;                  // classes in shared memory at once, in cells of 8
constexpr int kTurns = kChunk / kTile / 2;  // cells of a half

// How a tile of shifts is gone through.
enum Mode { kFarMode, kDroppedMode, kNearMode, kEmptyMode };

// Sums below it may have lost terms to kLeastPower.
constexpr float kLeastMass = 1e-20f;
// What a row may weigh, so that what it multiplies stays in range, and what it may weigh over S.
constexpr float kLeastWeight = 1e-12f, kMostWeight = 1e12f, kMostShare = 1e33f;
// From this squared Hellinger distance on two rows are far apart; a JSD of about as many nats.
constexpr float kNear = 0.005f;

// Where row n of a chunk begins: tiles of rows are so far apart that the groups of a warp, which
// read the same row of four tiles, find it in different banks.
__device__ __forceinline__ constexpr int row_at(int n) { return n * kChunk + n / kTile * kTile; }
constexpr int kOfRows = kBandRows * (kChunk + 1);
constexpr int kOfDonors = (kBandDonors + 1) * (kChunk + 1);

// Blocks of rows, bands of the chunk of slots, subsets.
inline dim3 band_grid(const BandProblem& pr) {
  const int64_t bands = (pr.last - pr.first + kBandRows - 1) / kBandRows;
  return dim3(unsigned((pr.rows + kBandRows - 1) / kBandRows), unsigned(bands),
              unsigned(pr.num_subsets));
}

// What a kernel may have of shared memory beyond 48 KB has to be asked for.
template <class Kernel>
void allow_shared(Kernel kernel, int bytes) {
  cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                       cudaFuncAttributeMaxDynamicSharedMemorySize, bytes);
}

__device__ __forceinline__ int in_circle(int i, int rows) { return i < rows ? i : i - rows; }

// This thread, and its block's part of the problem.
struct Place {
  int lane, rows, shifts, half;  // class of a cell, tile of rows, tile of shifts, half of classes
  int first_row, first_donor, first_slot;
  int band, s, m;

  __device__ explicit Place(const BandProblem& pr)
      : lane(int(threadIdx.x) % kTile),
        rows(int(threadIdx.x) / kTile % kTiles),
        shifts(int(threadIdx.x) / 32 % kTiles),
        half(int(threadIdx.x) / 128),
        first_row(int(blockIdx.x) * kBandRows),
        first_slot(int(pr.first) + int(blockIdx.y) * kBandRows),
        band(int(blockIdx.y)),
        s(int(blockIdx.z)),
        m(pr.taken(int(blockIdx.z))) {
    first_donor = int((int64_t(first_row) + pr.first_shift() + first_slot) % pr.rows);
  }
  // Of a tile's row and shift: the row, the slot, the donor.
  __device__ int row(int r) const { return first_row + rows * kTile + r; }
  __device__ int slot(int n) const { return first_slot + shifts * kTile + n; }
  __device__ int donor(const BandProblem& pr, int d) const {
    return in_circle(first_donor + d, int(pr.rows));
  }
  // The cell of classes of this half's turn, another one for each tile of shifts.
  __device__ int cell(int turn) const { return 2 * ((shifts + turn) % kTurns) + half; }
  __device__ int part(const BandProblem& pr) const { return band * pr.num_subsets + s; }
  __device__ int tile_modes(const BandProblem& pr) const {
    return (part(pr) * int(gridDim.x) + int(blockIdx.x)) * kTiles;
  }
};

// f(row, first class of a quad) for this thread's share of `count` rows of a chunk.
template <class F>
__device__ __forceinline__ void for_quads(int count, const F& f) {
  constexpr int kWide = kChunk / 4, kAtOnce = kBandThreads / kWide;
  const int c = int(threadIdx.x) % kWide * 4;
#pragma unroll
  for (int n = 0; n < count; n += kAtOnce) {
    const int row = n + int(threadIdx.x) / kWide;
    if (row < count) f(row, c);
  }
}

// What multiplies G of a row.
__device__ __forceinline__ float share_of(const BandProblem& pr, int row) {
  const float share = (pr.row_weight ? pr.row_weight[row] : 1.0f) / pr.clean_mass[row];
  return share <= kMostShare ? share : 0.0f;
}
// What a pair that the band serves has for a ratio; 0 for one that the exact kernels serve.
__device__ __forceinline__ float served(float ratio) { return ratio < 0.0f ? 0.0f : ratio; }

// to[0 .. kCount) = of those of two lanes, the half of 2 kCount numbers that this one goes on with.
template <int kCount, class F>
__device__ __forceinline__ void reduce_by(const F& of, int lane, float* to) {
  constexpr int kApart = kCount / kTile;
  const bool upper = (lane & kApart) != 0;
#pragma unroll
  for (int n = 0; n < kCount; ++n) {
    const float low = of(n), high = of(kCount + n);
    to[n] = (upper ? high : low) + __shfl_xor_sync(0xffffffffu, upper ? low : high, kApart);
  }
}

// to [row] of shift `lane`: of(0 .. kPairs - 1) summed over the eight lanes.
template <class F>
__device__ __forceinline__ void reduce_pairs(const F& of, int lane, float (&to)[kTile]) {
  float x[kPairs / 2] = {};
  const auto half = [&](int n) { return x[n]; };
  reduce_by<kPairs / 2>(of, lane, x);
  reduce_by<kPairs / 4>(half, lane, x);
  reduce_by<kPairs / 8>(half, lane, to);
}

// x of all eight lanes, the same in each.
__device__ __forceinline__ float reduce_lanes(float x) {
#pragma unroll
  for (int d = kTile / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}

}  // namespace cuda
}  // namespace mcr
