// The rows of a contrastive batch on a GPU. They are multiplied as x' = 2^k x, which rounds
// nothing; z = x / max(|x|, 1e-12) exists nowhere: its factor is applied to products.
#pragma once

#include "contrastive/similarity.h"

namespace mcr {
namespace MCR_ISA {

constexpr float kMaxInverseNorm = 1e12f;  // 1 / kMinNorm, what clamped rows have

// 2^exponent, for -126 .. 127
MCR_INLINE float power_of_two(int exponent) {
  const int32_t bits = (exponent + 127) << 23;
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}

// floor(log2(x)) of a normal x > 0; -127 below, 128 if it is not finite
MCR_INLINE int exponent_of(float x) {
  int32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  return ((bits >> 23) & 255) - 127;
}

// z = inverse x' = inverse_norm x
struct RowScale {
  float inverse, inverse_norm;
};

// Of a row's largest element, within what leaves powers of two that are normal numbers. Below 2^-60
// every norm is clamped.
template <class Team, class From>
MCR_FN int row_exponent(int64_t width, const From& from) {
  Vec<float> largest = {};
  Team::for_columns(0, width, [&](int64_t d, auto lanes) {
    largest = vmax(lanes.keep(-minus_abs(from(d))), largest);
  });
  const int exponent = exponent_of(Team::reduce_max(largest));
  return exponent < -60 ? -60 : exponent > 126 ? 126 : exponent;
}

// Of x' = factor x, from the sum of its squares. A row that is not finite turns everything that it
// meets into NaN, never into a number.
MCR_INLINE RowScale row_scale(float square, float factor) {
  const float inverse =
      square == 0.0f ? 0.0f : 1.0f / sqrtf(square < INFINITY ? square : (float)NAN);
  if (square == 0.0f || inverse * factor >= kMaxInverseNorm) {
    return {kMaxInverseNorm / factor, kMaxInverseNorm};
  }
  return {inverse, inverse * factor};
}

}  // namespace MCR_ISA
}  // namespace mcr
