// bfloat16 numbers as their bits, beside the vectors of vec.h: load_as<T> and store_as take either.
#pragma once

#include "core/vec.h"

namespace mcr {
namespace MCR_ISA {

typedef uint16_t Bfloat16Bits __attribute__((vector_size(MCR_VEC_BYTES / 2)));
typedef uint32_t FloatBits __attribute__((vector_size(MCR_VEC_BYTES)));

inline Vec<float> load_as(const uint16_t* p) {
  Bfloat16Bits half;
  __builtin_memcpy(&half, p, sizeof(half));
  return (Vec<float>)(__builtin_convertvector(half, FloatBits) << 16);
}

template <class T>
inline Vec<T> load_as(const T* p) {
  return load(p);
}

// Rounds to nearest even; NaN stays NaN.
inline void store_as(uint16_t* p, Vec<float> x) {
  const FloatBits bits = (FloatBits)x;
  FloatBits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  rounded = x != x ? FloatBits{} + 0x7fc0 : rounded;
  const Bfloat16Bits half = __builtin_convertvector(rounded, Bfloat16Bits);
  __builtin_memcpy(p, &half, sizeof(half));
}

template <class T>
inline void store_as(T* p, Vec<T> x) {
  store(p, x);
}

// The first n numbers of a vector, at the end of memory that holds no more.
template <class T, class In>
inline Vec<T> load_some(const In* p, int64_t n) {
  In lanes[kWidth<T>] = {};
  for (int64_t l = 0; l < n; ++l) lanes[l] = p[l];
  return load_as(lanes);
}

template <class T, class Out>
inline void store_some(Out* p, Vec<T> x, int64_t n) {
  Out lanes[kWidth<T>];
  store_as(lanes, x);
  for (int64_t l = 0; l < n; ++l) p[l] = lanes[l];
}

// n numbers to bfloat16.
inline void to_bfloat16(const float* from, int64_t n, uint16_t* to) {
  constexpr int W = kWidth<float>;
  int64_t i = 0;
  for (; i + W <= n; i += W) store_as(to + i, load(from + i));
  if (i < n) store_some<float>(to + i, load_some<float>(from + i, n - i), n - i);
}

// to += from, n numbers.
inline void add_bfloat16(const uint16_t* from, int64_t n, float* to) {
  constexpr int W = kWidth<float>;
  int64_t i = 0;
  for (; i + W <= n; i += W) store(to + i, load(to + i) + load_as(from + i));
  if (i == n) return;
  const Vec<float> sum = load_some<float>(to + i, n - i) + load_some<float>(from + i, n - i);
  store_some<float>(to + i, sum, n - i);
}

}  // namespace MCR_ISA
}  // namespace mcr
