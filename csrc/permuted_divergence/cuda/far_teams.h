// Who runs the row algorithms of far.h. Rows are padded to whole teams and read
// several classes at a time; nothing in the loops over the pairs asks where a row ends.
#pragma once

#include "core/lane.h"
#include "permuted_divergence/sides_problem.h"

namespace mcr {
namespace cuda {

// What both teams have in common.
struct FarTeam {
  // One instruction of the special-function unit each.
  MCR_FN static float quick_log2(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  MCR_FN static float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
  }
  // One access each.
  MCR_FN static void store_record(FarRecord<float>* to, float ratio, float scale, float offset) {
    *reinterpret_cast<float4*>(to) = make_float4(ratio, scale, offset, 0.0f);
  }
  MCR_FN static void load_record(const FarRecord<float>* from, float& ratio, float& scale,
                                 float& offset) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    ratio = x.x;
    scale = x.y;
    offset = x.z;
  }
  MCR_FN static void load_quad(const float* from, float* tile) {
    const float4 x = *reinterpret_cast<const float4*>(from);
    tile[0] = x.x;
    tile[1] = x.y;
    tile[2] = x.z;
    tile[3] = x.w;
  }
};

// kLanes threads of a warp with one row, the warp's teams in step with each other. Lane l has class
// (n / kWide * kLanes + l) * kWide + n % kWide in step n.
template <int kLanesOfTeam, int kStepsOfTeam>
struct PaddedTeam : FarTeam {
  static constexpr int kLanes = kLanesOfTeam, kSteps = kStepsOfTeam;
  static constexpr int kWide = kSteps % 4 == 0 ? 4 : 2;
  // Threads of a block at most, and blocks on a multiprocessor: registers for six tiles and what
  // goes with them. Rows next to each other have donors in common, so long ones share a large
  // block.
  static constexpr int kThreads = kSteps > 16 ? 256 : 128;
  static constexpr int kBlocks = kSteps > 16 ? 1 : kSteps > 8 ? 3 : 4;
  static constexpr bool kSplits = kSteps <= 16;  // whether several may share a row's pairs

  MCR_FN static int lane() { return int(threadIdx.x) % kLanes; }
  MCR_FN static bool leads() { return lane() == 0; }
  MCR_FN static int class_of(int n) { return (n / kWide * kLanes + lane()) * kWide + n % kWide; }
  MCR_FN static void load_padded(const float* row, int64_t, float* tile) {
    const float* mine = row + lane() * kWide;
#pragma unroll
    for (int n = 0; n < kSteps; n += kWide) {
      if constexpr (kWide == 4) {
        load_quad(mine + n * kLanes, tile + n);
      } else {
        const float2 x = *reinterpret_cast<const float2*>(mine + n * kLanes);
        tile[n] = x.x;
        tile[n + 1] = x.y;
      }
    }
  }
  // A tile where all lanes can read it, so that it is added to rows of memory by a loop that keeps
  // nothing in registers. The next stage() overwrites it.
  MCR_FN static const float* stage(const float* tile, int64_t) {
    __shared__ float tiles[kThreads / kLanes][kLanes * kSteps];
    float* to = tiles[threadIdx.x / kLanes];
    __syncwarp();
#pragma unroll
    for (int n = 0; n < kSteps; ++n) to[class_of(n)] = tile[n];
    __syncwarp();
    return to;
  }
  MCR_FN static void add_staged(float* row, int64_t classes, const float* staged, int64_t,
                                float factor) {
    for (int c = lane(); c < int(classes); c += kLanes) row[c] += factor * staged[c];
  }
  // x, but the compiler does not know: so that what is computed from it is not kept in registers
  // over the loop before it.
  MCR_FN static int32_t opaque(int32_t x) {
    asm volatile("" : "+r"(x));
    return x;
  }
  MCR_FN static bool all(bool x) { return __all_sync(0xffffffffu, x); }
  // By halving: every lane ends with the same bits.
  MCR_FN static float reduce_sum(float x) {
#pragma unroll
    for (int d = kLanes / 2; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
    return x;
  }
};

// A block of threads [columns, rows]: each has eight classes of a row, a quad of either half.
struct ColumnTeam : FarTeam {
  static constexpr int kSteps = 8, kThreads = 640;

  MCR_FN static int class_of(int n) { return 4 * int(threadIdx.x + n / 4 * blockDim.x) + n % 4; }
  MCR_FN static float load_step(const float* row, int64_t n, int64_t size, float fill) {
    const int c = class_of(int(n));
    return c < size ? row[c] : fill;
  }
  MCR_FN static void store_step(float* row, int64_t n, int64_t size, float x) {
    const int c = class_of(int(n));
    if (c < size) row[c] = x;
  }
  MCR_FN static void load_padded(const float* row, int64_t, float* tile) {
    const float* mine = row + 4 * threadIdx.x;
    load_quad(mine, tile);
    load_quad(mine + 4 * blockDim.x, tile + 4);
  }
};

}  // namespace cuda
}  // namespace mcr
