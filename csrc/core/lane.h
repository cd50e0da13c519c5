// One lane of a GPU team under the names that vec.h and team.h give a CPU's vectors: a "vector" is
// this lane's float, a tile its registers, and what crosses lanes are the team's reductions. So the
// row algorithms compile for both from one text.
#pragma once

#include <math.h>
#include <stdint.h>

#include "core/macros.h"
#include "core/polynomials.h"

namespace mcr {
namespace MCR_ISA {

template <class T>
using Vec = T;
template <class T>
constexpr int kWidth = 1;
template <class V>
struct ElementOf {
  using type = V;
};

MCR_INLINE float load(const float* p) { return *p; }
MCR_INLINE void store(float* p, float x) { *p = x; }

// The larger of the two; where either is NaN, b.
MCR_INLINE float vmax(float a, float b) { return a > b ? a : b; }
MCR_INLINE float vmin(float a, float b) { return a < b ? a : b; }
MCR_INLINE float minus_abs(float x) { return -fabsf(x); }

// One instruction of the special-function unit each, to about 2 ulp; without the flush to zero the
// compiler would wrap them in a rescaling of subnormals.
MCR_INLINE float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// Of one number a row, so the exact one: it is an offset of all the classes' logarithms.
MCR_INLINE float log2(float x) { return ::log2f(x); }

// t = 2^x and, with a small RELATIVE error also near 0, t - 1; for x <= 0. NaN stays NaN. Near 0
// the one is the other: what cancels between them later is not to see the error of two
// approximations.
MCR_INLINE float exp2_and_m1(float x, float& tm1) {
  const float t = exp2(x);
  const bool near = x > -0.5f;
  tm1 = near ? x * exp2m1_over(x) : t - 1.0f;
  return near ? 1.0f + tm1 : t;
}

// log2((1 + t) / 2) from y = t - 1 in [-1, 0], with a small relative error also as t -> 1.
MCR_INLINE float log2_half1p(float y) { return two_atanh_over_ln2(__fdividef(y, y + 4.0f)); }

// log2(1 + t) for t in [0, 1], with a small relative error also near 0.
MCR_INLINE float log2_1p(float t) { return two_atanh_over_ln2(__fdividef(t, t + 2.0f)); }

MCR_INLINE float splat(float x) { return x; }
MCR_INLINE bool any(bool x) { return x; }

struct AllLanes {
  MCR_FN static float keep(float x) { return x; }
  MCR_FN static float select(float x, float) { return x; }
};
// kLanes threads with consecutive classes of one row; up to 32 they are a part of a warp, beyond
// they are a block. Lane l has class n * kLanes + l in step n of at most kSteps.
template <int kLanesOfTeam, int kStepsOfTeam>
struct DeviceTeam {
  using V = float;
  using Scalar = float;
  struct Keep {};
  static constexpr int kLanes = kLanesOfTeam, kSteps = kStepsOfTeam;
  static constexpr int kRows = 1;
  // The special-function unit gives the exponential that they save beside the other arithmetic.
  static constexpr bool kFarTerms = false;
  // Another tile of registers costs more than the arithmetic that it spares.
  static constexpr bool kTilesAreMemory = false;

  MCR_FN static int lane() { return int(threadIdx.x) % kLanes; }
  MCR_FN static bool leads() { return lane() == 0; }
  MCR_FN static float load_step(const float* row, int64_t n, int64_t size, float fill) {
    const int c = int(n) * kLanes + lane();
    return c < size ? row[c] : fill;
  }
  MCR_FN static void store_step(float* row, int64_t n, int64_t size, float x) {
    const int c = int(n) * kLanes + lane();
    if (c < size) row[c] = x;
  }

  // f(column, lanes) for this lane's columns of low .. high - 1.
  template <class F>
  MCR_FN static void for_columns(int64_t low, int64_t high, const F& f) {
#pragma unroll 4
    for (int j = int(low) + lane(); j < int(high); j += kLanes) f(int64_t(j), AllLanes());
  }

  // The first n of first .. last - 1 that holds(n) is true of, or last. Each warp of a team asks
  // for itself.
  template <class F>
  MCR_FN static int64_t first_of(int64_t first, int64_t last, const F& holds) {
    for (; first < last; first += kInWarp) {
      const int64_t n = first + lane() % kInWarp;
      const uint32_t found = __ballot_sync(lanes(), n < last && holds(n)) & lanes();
      if (found != 0)
        return first + __ffs(int(found)) - 1 - int(threadIdx.x % 32) / kInWarp * kInWarp;
    }
    return last;
  }

  struct Sum {
    MCR_FN static float of(float a, float b) { return a + b; }
  };
  struct Max {
    MCR_FN static float of(float a, float b) { return vmax(a, b); }
  };
  MCR_FN static float reduce_sum(float x) { return reduce<Sum>(x); }
  MCR_FN static float reduce_max(float x) { return reduce<Max>(x); }
  MCR_FN static float scalar_log2(float x) { return log2(x); }
  MCR_FN static bool all_between(float x, float low, float high) { return x > low && x < high; }
  MCR_FN static float keep(Keep, float x) { return x; }

 private:
  static constexpr int kInWarp = kLanes < 32 ? kLanes : 32;

  // Of its warp, the team's lanes: the other teams may be elsewhere in the program.
  MCR_FN static uint32_t lanes() {
    if constexpr (kLanes >= 32) return 0xffffffffu;
    return ((1u << (kLanes % 32)) - 1u) << (threadIdx.x % 32 / kLanes * kLanes);
  }
  // By halving, as sum() of vec.h: every lane ends with the same bits.
  template <class Op>
  MCR_FN static float reduce(float x) {
    const uint32_t mask = lanes();
#pragma unroll
    for (int d = kInWarp / 2; d > 0; d /= 2) x = Op::of(x, __shfl_xor_sync(mask, x, d));
    if constexpr (kLanes > 32) {
      __shared__ float warps[kLanes / 32];
      __syncthreads();  // the sum before this one has been read
      if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
      __syncthreads();
      x = warps[0];
#pragma unroll
      for (int w = 1; w < kLanes / 32; ++w) x = Op::of(x, warps[w]);
    }
    return x;
  }
};

// The parts of a row's pairs where one team has all of them. Several teams share them by
// cuda/parts.h.
struct Whole {
  static constexpr int part = 0, parts = 1;
  static constexpr bool live = true;  // there is such a row

  MCR_FN static bool leads() { return true; }
  // Adds what the other parts have; to be called by all of them, for the same things in turn.
  template <class X>
  MCR_FN static void add(X&) {}
  template <class T>
  MCR_FN static void add_tile(T*, int64_t) {}
};

}  // namespace MCR_ISA
}  // namespace mcr
