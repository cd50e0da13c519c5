// The first kernel of a band (band.h): the mass of each pair, and which tiles hold near ones.
#include "cuda/blocks.h"
#include "permuted_divergence/cuda/band.h"

namespace mcr {
namespace cuda {
namespace {

// In shared memory: G, a and e, or G sqrt(a) and sqrt(e); later what halves of a block exchange.
constexpr int kMassFloats = 2 * kOfRows + kOfDonors;

template <bool kRoots>
__device__ __forceinline__ void stage(const BandProblem& pr, const Place& at, int first,
                                      float* pool) {
  const auto root = [](float x) { return quick_sqrt(x); };
  for_quads(kBandRows, [&](int n, int c) {
    const int row = in_circle(at.first_row + n, int(pr.rows));
    float4 g = all_of(0.0f), a = all_of(1.0f);
    if (first + c < pr.row_stride) {
      a = quad(pr.powers + (pr.offset(at.m, row) + first + c));
      g = quad(pr.powers + (pr.offset(1 - at.m, row) + first + c));
      g = g * quad(pr.bias_powers + (first + c));
    }
    put(pool + row_at(n) + c, kRoots ? g * map(a, root) : g);
    if (!kRoots) put(pool + kOfRows + row_at(n) + c, a);
  });
  for_quads(kBandDonors, [&](int n, int c) {
    float4 e = all_of(1.0f);
    if (first + c < pr.row_stride) {
      e = quad(pr.powers + (pr.offset(at.m, at.donor(pr, n)) + first + c));
    }
    put(pool + 2 * kOfRows + row_at(n) + c, kRoots ? map(e, root) : e);
  });
}

// sums[n, r] += x[r] y[r + n] of one class; `rows` and `donors` are at the tile's first of either.
__device__ __forceinline__ void add_products(const float* rows, const float* donors,
                                             float (&sums)[kPairs]) {
  float x[kTile];
#pragma unroll
  for (int r = 0; r < kTile; ++r) x[r] = rows[row_at(r)];
#pragma unroll
  for (int d = 0; d < kTileDonors; ++d) {
    const float y = donors[row_at(d)];
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      const int n = d - r;
      if (n >= 0 && n < kTile) sums[n * kTile + r] = fmaf(x[r], y, sums[n * kTile + r]);
    }
  }
}

// own += G a of this lane's classes of the chunk.
__device__ __forceinline__ void add_own(const float* rows, float (&own)[kTile]) {
#pragma unroll
  for (int c = 0; c < kChunk; c += 2 * kTile) {
#pragma unroll
    for (int r = 0; r < kTile; ++r) {
      const float* g = rows + c + row_at(r);
      own[r] = fmaf(g[0], g[kOfRows], own[r]);
    }
  }
}

// sums = this lane's classes of Z, or with kRoots of sum G sqrt(a e); own = those of S, in the
// warps of the first shifts.
template <bool kRoots>
__device__ __forceinline__ void add_chunks(const BandProblem& pr, const Place& at, float* pool,
                                           float (&sums)[kPairs], float (&own)[kTile]) {
#pragma unroll
  for (int n = 0; n < kPairs; ++n) sums[n] = 0.0f;
  for (int first = 0; first < int(pr.classes); first += kChunk) {
    __syncthreads();
    stage<kRoots>(pr, at, first, pool);
    __syncthreads();
    const float* rows = pool + row_at(at.rows * kTile) + at.half * kTile + at.lane;
    const float* donors =
        pool + 2 * kOfRows + row_at((at.rows + at.shifts) * kTile) + at.half * kTile + at.lane;
#pragma unroll
    for (int c = 0; c < kChunk; c += 2 * kTile) {
      add_products(rows + c, donors + c, sums);
    }
    if constexpr (!kRoots) {
      if (at.shifts == 0) add_own(rows, own);
    }
  }
}

// What the warps of the first shifts have for a lane and its rows, to all the others.
__device__ __forceinline__ void share_rows(const Place& at, float* pool, float (&x)[kTile]) {
  const int lane = (at.half * kTiles + at.rows) * kTile + at.lane;
  __syncthreads();
#pragma unroll
  for (int r = 0; at.shifts == 0 && r < kTile; ++r) pool[r * 64 + lane] = x[r];
  __syncthreads();
#pragma unroll
  for (int r = 0; r < kTile; ++r) x[r] = pool[r * 64 + lane];
}

// x + that of the other half of the classes, known to half 0.
__device__ __forceinline__ void add_halves(const Place& at, float* pool, float (&x)[kTile]) {
  const int lane = int(threadIdx.x) % 128;
  __syncthreads();
#pragma unroll
  for (int r = 0; at.half == 1 && r < kTile; ++r) pool[r * 128 + lane] = x[r];
  __syncthreads();
#pragma unroll
  for (int r = 0; at.half == 0 && r < kTile; ++r) x[r] += pool[r * 128 + lane];
}

template <class F>
__device__ __forceinline__ void reduce_to(const F& of, const Place& at, float* pool,
                                          float (&to)[kTile]) {
  reduce_pairs(of, at.lane, to);
  add_halves(at, pool, to);
}

// What a pair adds: nothing, or what the band or else the exact kernels make of it.
__device__ float ratio_of(const BandProblem& pr, const Place& at, int i, int j, float clean_mass,
                          float mass) {
  const float weight = pr.row_weight ? pr.row_weight[i] : 1.0f;
  if (i == j || weight * pr.factors[at.s] == 0.0f) return kNothing;
  if (pr.may_drop && !pr.keeps_pair(at.m, i, j)) return kNothing;
  const int N = int(pr.rows);
  if (pr.bad[i] | pr.bad[N + i] | pr.bad[at.m * N + j] | pr.bad[2 * N]) return NAN;
  const bool in_range = clean_mass > kLeastMass && mass > kLeastMass;
  return in_range && weight >= kLeastWeight && weight <= kMostWeight ? clean_mass / mass : kLeft;
}

__device__ void leave(const BandProblem& pr, int s, int i, int j) {
  // who else says so writes the same 1
  pr.left[s * pr.rows + i] = 1;
  pr.left[(pr.num_subsets + s) * pr.rows + j] = 1;
}

// The slot beyond the band, and where the shifts are scattered all of them: for the exact kernels.
__device__ void leave_slots(const BandProblem& pr, const Place& at, bool all) {
  const int i = at.first_row + int(threadIdx.x) % kBandRows;
  if (i >= pr.rows) return;
  const bool ends = pr.last == pr.slots && at.band + 1 == int(gridDim.y);
  const bool passes = !all && pr.first_shift() + pr.slots > pr.rows;
  for (int n = int(threadIdx.x) / kBandRows; n < kBandRows; n += kBandThreads / kBandRows) {
    const int k = at.first_slot + n;
    if (!all || k >= pr.last) break;
    const int j = int(pr.donor(at.m, k, i));
    const bool left = ratio_of(pr, at, i, j, 0.0f, 0.0f) != kNothing;
    pr.ratios_to[pr.pair(at.s, k, i)] = left ? kLeft : kNothing;
    if (left) leave(pr, at.s, i, j);
  }
  if (!ends || threadIdx.x >= kBandRows) return;
  const int j = int(pr.donor(at.m, pr.slots, i));
  const bool left = passes && ratio_of(pr, at, i, j, 0.0f, 0.0f) != kNothing;
  pr.ratios_to[pr.pair(at.s, pr.slots, i)] = left ? kLeft : kNothing;
  if (left) leave(pr, at.s, i, j);
}

__global__ void __launch_bounds__(kBandThreads, 1)
    band_masses_kernel(const __grid_constant__ BandProblem pr) {
  if (is_set(pr.skip)) return;
  extern __shared__ __align__(16) float pool[];
  const Place at(pr);
  const bool scattered = is_set(pr.scattered);
  leave_slots(pr, at, scattered);
  if (scattered) return;
  float sums[kPairs] = {}, own[kTile] = {}, mass[kTile], overlap[kTile];
  const auto pair = [&](int n) { return sums[n]; };
  add_chunks<false>(pr, at, pool, sums, own);
  share_rows(at, pool, own);
  // Merged classes are no further apart than all of them: where the sums of a few of these are far
  // apart, so are the rows.
  const auto merged = [&](int n) { return quick_sqrt(own[n % kTile]) * quick_sqrt(sums[n]); };
  reduce_to(merged, at, pool, overlap);
  reduce_to(pair, at, pool, mass);
#pragma unroll
  for (int r = 0; r < kTile; ++r) own[r] = reduce_lanes(own[r]);
  add_halves(at, pool, own);
  const auto is_near = [&](int r, float ratio) {
    const float most = quick_sqrt(own[r]) * quick_sqrt(mass[r]);
    return ratio > 0.0f && !(overlap[r] < (1.0f - kNear) * most);
  };
  // the other subset has another rounding of it
  const bool writes = at.s == 0 && at.band == 0;
  float ratio[kTile] = {};
  bool near = false, any = false, all = true;
#pragma unroll
  for (int r = 0; at.half == 0 && r < kTile; ++r) {
    const int i = at.row(r), k = at.slot(at.lane);
    const int j = at.donor(pr, (at.rows + at.shifts) * kTile + r + at.lane);
    const bool there = i < pr.rows && k < pr.last;
    if (there) {
      ratio[r] = ratio_of(pr, at, i, j, own[r], mass[r]);
      pr.ratios_to[pr.pair(at.s, k, i)] = ratio[r];
      if (ratio[r] == kLeft) leave(pr, at.s, i, j);
      if (writes && at.shifts == 0 && at.lane == 0) pr.clean_mass[i] = own[r];
    }
    near |= is_near(r, ratio[r]);
    any |= served(ratio[r]) != 0.0f;
    all &= served(ratio[r]) != 0.0f;
  }
  if (__syncthreads_or(near)) {
    add_chunks<true>(pr, at, pool, sums, own);
    reduce_to(pair, at, pool, overlap);
    near = false;
#pragma unroll
    for (int r = 0; at.half == 0 && r < kTile; ++r) near |= is_near(r, ratio[r]);
  }
  near = __any_sync(0xffffffffu, near);
  any = __any_sync(0xffffffffu, any);
  all = __all_sync(0xffffffffu, all);
  if (threadIdx.x % 32 != 0 || at.half != 0) return;
  const Mode mode = !any ? kEmptyMode : near ? kNearMode : all ? kFarMode : kDroppedMode;
  pr.modes[at.tile_modes(pr) + at.shifts] = mode;
}

}  // namespace

void band_masses(const BandProblem& pr, cudaStream_t stream) {
  constexpr int kBytes = kMassFloats * int(sizeof(float));
  band_masses_kernel<<<band_grid(pr), kBandThreads, kBytes, stream>>>(pr);
}

}  // namespace cuda
}  // namespace mcr
