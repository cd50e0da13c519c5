// The rows of a contrastive batch on a GPU on their way in and out. A row x is stored as x' = 2^k
// x: exact in the input's own 16 bits, so products of rows run on tensor cores and lose nothing
// before float32. z = x / max(|x|, 1e-12) exists nowhere; its factor is applied to products.
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

// Stores x' with its largest element in 2^top [1, 2). from(d) and to(d, x') take an element or a
// vector of them.
template <class Team, class From, class To>
MCR_FN RowScale scale_row(int64_t width, int top, const From& from, const To& to) {
  Vec<float> squares = {};
  const float factor = power_of_two(top - row_exponent<Team>(width, from));
  Team::for_columns(0, width, [&](int64_t d, auto lanes) {
    const Vec<float> scaled = lanes.keep(from(d) * factor);
    squares += scaled * scaled;
    to(d, scaled);
  });
  return row_scale(Team::reduce_sum(squares), factor);
}

// to(d, dx): factor / |x| * (g - z (z . g)), the normalisation's Jacobian, without the projection
// where the norm was clamped.
template <class Team, class Gradient, class Scaled, class To>
MCR_FN void project_row(int64_t width, const RowScale& scale, float factor,
                        const Gradient& gradient, const Scaled& scaled, const To& to) {
  Vec<float> products = {};
  Team::for_columns(0, width, [&](int64_t d, auto lanes) {
    products += lanes.keep(gradient(d) * (scaled(d) * scale.inverse));
  });
  const float along = scale.inverse_norm == kMaxInverseNorm ? 0.0f : Team::reduce_sum(products);
  const float outer = factor * scale.inverse_norm;
  Team::for_columns(0, width, [&](int64_t d, auto) {
    to(d, outer * (gradient(d) - along * (scaled(d) * scale.inverse)));
  });
}

}  // namespace MCR_ISA
}  // namespace mcr
