// Four floats at once, and instructions of the special-function unit.
#pragma once

#include <cuda_runtime.h>
#include <math.h>

#include "core/macros.h"

namespace mcr {
namespace cuda {

MCR_INLINE float4 operator*(const float4& x, const float4& y) {
  return make_float4(x.x * y.x, x.y * y.y, x.z * y.z, x.w * y.w);
}
MCR_INLINE float4 operator+(const float4& x, const float4& y) {
  return make_float4(x.x + y.x, x.y + y.y, x.z + y.z, x.w + y.w);
}
template <class F>
MCR_INLINE float4 map(const float4& x, const F& f) {
  return make_float4(f(x.x), f(x.y), f(x.z), f(x.w));
}
MCR_INLINE float4 all_of(float x) { return make_float4(x, x, x, x); }
MCR_INLINE float4 quad(const float* from) { return *reinterpret_cast<const float4*>(from); }
MCR_INLINE void put(float* to, const float4& x) { *reinterpret_cast<float4*>(to) = x; }

// 0 of what is below the least normal number.
MCR_INLINE float quick_log2(float x) {
  float y;
  asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// For a loop that has to compute it again: the compiler would keep it for every round.
MCR_INLINE float opaque_log2(float x) {
  float y;
  asm volatile("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
MCR_INLINE float quick_sqrt(float x) {
  float y;
  asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
// To half an ulp or next to it.
MCR_INLINE float inverse(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return fmaf(y, fmaf(-x, y, 1.0f), y);
}

}  // namespace cuda
}  // namespace mcr
