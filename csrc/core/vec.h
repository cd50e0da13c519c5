// Vectors of float or double and the few functions the row algorithms need, in GCC vector
// extensions, with intrinsics only where an instruction set has the very instruction. Every
// instruction set compiles this file again under its own flags, so all of it lives in the namespace
// MCR_ISA, and neither torch nor the C++ library is included: an inline function of theirs compiled
// for AVX-512 could be the copy the linker keeps for everyone. (Intrinsics are always inlined.)
#pragma once

#include <math.h>
#include <stdint.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "core/macros.h"
#include "core/polynomials.h"

namespace mcr {
namespace MCR_ISA {

template <class T>
struct Lanes;
template <>
struct Lanes<float> {
  typedef float type __attribute__((vector_size(MCR_VEC_BYTES)));
  typedef int32_t mask __attribute__((vector_size(MCR_VEC_BYTES)));
};
template <>
struct Lanes<double> {
  typedef double type __attribute__((vector_size(MCR_VEC_BYTES)));
  typedef int64_t mask __attribute__((vector_size(MCR_VEC_BYTES)));
};

template <class T>
using Vec = typename Lanes<T>::type;
template <class T>
using Mask = typename Lanes<T>::mask;
template <class T>
constexpr int kWidth = MCR_VEC_BYTES / sizeof(T);

template <class T>
MCR_INLINE Vec<T> load(const T* p) {
  Vec<T> v;
  __builtin_memcpy(&v, p, sizeof(v));
  return v;
}

template <class T>
inline void store(T* p, Vec<T> v) {
  __builtin_memcpy(p, &v, sizeof(v));
}

template <class T>
MCR_INLINE Vec<T> splat(T x) {
  return x - Vec<T>{};
}

// Step n of a row of `size` elements, its ragged end filled up.
template <class T>
MCR_INLINE Vec<T> load_step(const T* row, int64_t n, int64_t size, T fill) {
  constexpr int W = kWidth<T>;
  if ((n + 1) * W <= size) return load(row + n * W);
  T lanes[W];
  for (int l = 0; l < W; ++l) lanes[l] = n * W + l < size ? row[n * W + l] : fill;
  return load(lanes);
}

template <class T>
MCR_INLINE void store_step(T* row, int64_t n, int64_t size, Vec<T> x) {
  constexpr int W = kWidth<T>;
  if ((n + 1) * W <= size) return store(row + n * W, x);
  for (int l = 0; n * W + l < size; ++l) row[n * W + l] = x[l];
}

// The larger of the two; where either is NaN, b.
template <class V>
MCR_INLINE V vmax(V a, V b) {
  return a > b ? a : b;
}

template <class V>
MCR_INLINE V vmin(V a, V b) {
  return a < b ? a : b;
}

// -|x|
MCR_INLINE Vec<float> minus_abs(Vec<float> x) { return (Vec<float>)((Mask<float>)x | INT32_MIN); }
MCR_INLINE Vec<double> minus_abs(Vec<double> x) {
  return (Vec<double>)((Mask<double>)x | INT64_MIN);
}

// Sums by halving, always in the same order.
template <class T, int kLanes>
MCR_INLINE T sum_lanes(const T* lanes) {
  if constexpr (kLanes == 1) {
    return *lanes;
  } else {
    typedef T Half __attribute__((vector_size(kLanes / 2 * sizeof(T))));
    Half low, high;
    __builtin_memcpy(&low, lanes, sizeof(low));
    __builtin_memcpy(&high, lanes + kLanes / 2, sizeof(high));
    low += high;
    T half[kLanes / 2];
    __builtin_memcpy(half, &low, sizeof(low));
    return sum_lanes<T, kLanes / 2>(half);
  }
}
template <class V>
MCR_INLINE auto sum(V v) {
  using T = decltype(v[0] + 0);
  T lanes[sizeof(V) / sizeof(T)];
  __builtin_memcpy(lanes, &v, sizeof(v));
  return sum_lanes<T, sizeof(V) / sizeof(T)>(lanes);
}

#if defined(__AVX512F__)
MCR_INLINE Vec<float> vmax(Vec<float> a, Vec<float> b) { return _mm512_max_ps(a, b); }
MCR_INLINE Vec<float> vmin(Vec<float> a, Vec<float> b) { return _mm512_min_ps(a, b); }
MCR_INLINE float sum(Vec<float> v) { return _mm512_reduce_add_ps(v); }
#elif defined(__AVX2__)
MCR_INLINE Vec<float> vmax(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a, b); }
MCR_INLINE Vec<float> vmin(Vec<float> a, Vec<float> b) { return _mm256_min_ps(a, b); }
#endif

template <class M>
MCR_INLINE bool any(M mask) {
  return sum(mask) != 0;
}

// Four columns of kWidth rows as four vectors, and back: load_quads puts quad g of vector k at row
// at[4 g + k], transpose_quads then gives vector k column k of every row, in the order of `at`.
constexpr int kQuads = kWidth<float> / 4;
typedef float Quad __attribute__((vector_size(16)));

MCR_INLINE Quad load_quad(const float* p) {
  Quad q;
  __builtin_memcpy(&q, p, sizeof(q));
  return q;
}

#if defined(__AVX512F__)
MCR_INLINE void load_quads(const float* p, int64_t stride, const int32_t* at, Vec<float> (&v)[4]) {
  for (int k = 0; k < 4; ++k) {
    __m512 x = _mm512_castps128_ps512(load_quad(p + at[k] * stride));
    x = _mm512_insertf32x4(x, load_quad(p + at[4 + k] * stride), 1);
    x = _mm512_insertf32x4(x, load_quad(p + at[8 + k] * stride), 2);
    v[k] = _mm512_insertf32x4(x, load_quad(p + at[12 + k] * stride), 3);
  }
}
MCR_INLINE void transpose_quads(Vec<float> (&v)[4]) {
  const __m512 a = _mm512_unpacklo_ps(v[0], v[1]), b = _mm512_unpackhi_ps(v[0], v[1]);
  const __m512 c = _mm512_unpacklo_ps(v[2], v[3]), d = _mm512_unpackhi_ps(v[2], v[3]);
  v[0] = _mm512_shuffle_ps(a, c, 0x44);
  v[1] = _mm512_shuffle_ps(a, c, 0xee);
  v[2] = _mm512_shuffle_ps(b, d, 0x44);
  v[3] = _mm512_shuffle_ps(b, d, 0xee);
}
#elif defined(__AVX2__)
MCR_INLINE void load_quads(const float* p, int64_t stride, const int32_t* at, Vec<float> (&v)[4]) {
  for (int k = 0; k < 4; ++k) {
    const __m256 x = _mm256_castps128_ps256(load_quad(p + at[k] * stride));
    v[k] = _mm256_insertf128_ps(x, load_quad(p + at[4 + k] * stride), 1);
  }
}
MCR_INLINE void transpose_quads(Vec<float> (&v)[4]) {
  const __m256 a = _mm256_unpacklo_ps(v[0], v[1]), b = _mm256_unpackhi_ps(v[0], v[1]);
  const __m256 c = _mm256_unpacklo_ps(v[2], v[3]), d = _mm256_unpackhi_ps(v[2], v[3]);
  v[0] = _mm256_shuffle_ps(a, c, 0x44);
  v[1] = _mm256_shuffle_ps(a, c, 0xee);
  v[2] = _mm256_shuffle_ps(b, d, 0x44);
  v[3] = _mm256_shuffle_ps(b, d, 0xee);
}
#else
MCR_INLINE void load_quads(const float* p, int64_t stride, const int32_t* at, Vec<float> (&v)[4]) {
  for (int k = 0; k < 4; ++k) {
    Quad quads[kQuads];
    for (int g = 0; g < kQuads; ++g) quads[g] = load_quad(p + at[4 * g + k] * stride);
    __builtin_memcpy(&v[k], quads, sizeof(quads));
  }
}
MCR_INLINE void transpose_quads(Vec<float> (&v)[4]) {
  const Vec<float> rows[4] = {v[0], v[1], v[2], v[3]};
  for (int k = 0; k < 4; ++k) {
    for (int l = 0; l < kWidth<float>; ++l) v[k][l] = rows[l % 4][l / 4 * 4 + k];
  }
}
#endif

// Adds quad g of vector k to row at[4 g + k], row after row: a row may come twice.
MCR_INLINE void add_quads(float* p, int64_t stride, const int32_t* at, const Vec<float> (&v)[4]) {
  float lanes[4][kWidth<float>];
  for (int k = 0; k < 4; ++k) store(lanes[k], v[k]);
  for (int l = 0; l < kWidth<float>; ++l) {
    float* row = p + at[l] * stride;
    const Quad sum = load_quad(row) + load_quad(&lanes[l % 4][l / 4 * 4]);
    __builtin_memcpy(row, &sum, sizeof(sum));
  }
}

// x, kept above -150 (and below 128, where need be), is n + f with n whole and f in [-1/2, 1/2];
// times() multiplies by 2^n.
struct PowerOfTwo {
  Vec<float> n, f;
#if defined(__AVX512F__)
  MCR_INLINE explicit PowerOfTwo(Vec<float> x) {
    x = vmax(splat(-150.0f), x);
    n = _mm512_roundscale_ps(x, 0);
    f = x - n;
  }
  MCR_INLINE Vec<float> times(Vec<float> y) const { return _mm512_scalef_ps(y, n); }
#else
  // A multiplication, because adding to the exponent would lose a NaN; 0 for n = -127.
  Vec<float> scale;
  MCR_INLINE explicit PowerOfTwo(Vec<float> x) {
    const Vec<float> kRound = splat(12582912.0f);  // 1.5 * 2^23: leaves round(x) in the low bits
    x = vmin(splat(127.0f), vmax(splat(-127.0f), x));
    const Vec<float> shifted = x + kRound;
    n = shifted - kRound;
    f = x - n;
    scale = (Vec<float>)(((Mask<float>)shifted << 23) + 0x3f800000);
  }
  MCR_INLINE Vec<float> times(Vec<float> y) const { return y * scale; }
#endif
};

// t = 2^x and, with a small RELATIVE error also near 0, t - 1; for x <= 0. NaN stays NaN.
MCR_INLINE Vec<float> exp2_and_m1(Vec<float> x, Vec<float>& tm1) {
  const PowerOfTwo power(x);
  const Vec<float> p = exp2m1_over(power.f);
  const Vec<float> t = power.times(p * power.f + 1.0f);
  tm1 = power.n == 0.0f ? p * power.f : t - 1.0f;
  return t;
}

// 2^x, but 0 below 2^-150 and, above the range, something no smaller than 2^127; NaN stays NaN.
MCR_INLINE Vec<float> exp2(Vec<float> x) {
  const PowerOfTwo power(x);
  return power.times(exp2m1_over(power.f) * power.f + 1.0f);
}

// log2(x) for normal positive x; 0 gives -inf, negative and NaN give NaN, inf gives inf.
MCR_INLINE Vec<float> log2(Vec<float> x) {
  const Mask<float> bits = (Mask<float>)x;
  const Mask<float> e = (bits - 0x3f3504f3) >> 23;  // mantissa in [sqrt(1/2), sqrt(2))
  const Vec<float> m = (Vec<float>)(bits - (e << 23));
  const Vec<float> s = (m - 1.0f) / (m + 1.0f);
  const Vec<float> u = s * s;
  Vec<float> p = splat(0.431717697459f);
  p = p * u + 0.576715186019f;
  p = p * u + 0.961798838802f;
  p = p * u + 2.8853900798f;
  Vec<float> y = __builtin_convertvector(e, Vec<float>) + p * s;
  y = x < 1.17549435e-38f ? splat(-INFINITY) : y;
  y = x < 0.0f ? splat((float)NAN) : y;
  return (x != x) | (x > 3.4e38f) ? x : y;
}

// log2((1 + t) / 2) from y = t - 1 in [-1, 0], with a small relative error also as t -> 1. The
// divider works beside the multipliers, so the division costs less than the six more terms of a
// polynomial in y.
MCR_INLINE Vec<float> log2_half1p(Vec<float> y) { return two_atanh_over_ln2(y / (y + 4.0f)); }

// log2(1 + t) for t in [0, 1], with a small relative error also near 0.
MCR_INLINE Vec<float> log2_1p(Vec<float> t) { return two_atanh_over_ln2(t / (t + 2.0f)); }

// log2((low + high) / (2 high)) for 0 <= low <= high; 0 if both are 0.
MCR_INLINE Vec<float> log2_mean_over_max(Vec<float> low, Vec<float> high) {
  return two_atanh_over_ln2((low - high) / vmax(splat(1e-37f), high * 3.0f + low));
}

// float64 is for checking, not for speed: one libm call a lane.
#define MCR_LANEWISE(NAME, EXPRESSION)         \
  MCR_INLINE Vec<double> NAME(Vec<double> v) { \
    Vec<double> y;                             \
    for (int l = 0; l < kWidth<double>; ++l) { \
      const double x = v[l];                   \
      y[l] = (EXPRESSION);                     \
    }                                          \
    return y;                                  \
  }
MCR_LANEWISE(exp2, ::exp2(x))
MCR_LANEWISE(log2, ::log2(x))
MCR_LANEWISE(log2_1p, ::log1p(x) * 1.44269504088896340736)
MCR_LANEWISE(log2_half1p, ::log1p(0.5 * x) * 1.44269504088896340736)
#undef MCR_LANEWISE
MCR_INLINE Vec<double> exp2_and_m1(Vec<double> x, Vec<double>& tm1) {
  for (int l = 0; l < kWidth<double>; ++l) tm1[l] = ::expm1(x[l] * 0.69314718055994530942);
  return tm1 + 1.0;
}

}  // namespace MCR_ISA
}  // namespace mcr
