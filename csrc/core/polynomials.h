// The polynomials behind exp2 and log2, for a CPU's vectors and for one lane of a GPU alike.
#pragma once

#include "core/macros.h"

namespace mcr {
namespace MCR_ISA {

// (2^f - 1) / f for f in [-1/2, 1/2]; relative error 1e-8 before rounding.
template <class V>
MCR_INLINE V exp2m1_over(V f) {
  V p = V{} + 1.54531629451e-4f;
  p = p * f + 1.33908633647e-3f;
  p = p * f + 9.61808255728e-3f;
  p = p * f + 5.55035711422e-2f;
  p = p * f + 0.240226507606f;
  return p * f + 0.693147188026f;
}

// 2 atanh(s) / ln 2 for s in [-1/3, 1/3]; relative error 1e-8 before rounding.
template <class V>
MCR_INLINE V two_atanh_over_ln2(V s) {
  const V u = s * s;
  V p = V{} + 0.406230872069f;
  p = p * u + 0.403451943967f;
  p = p * u + 0.577432850529f;
  p = p * u + 0.961791716263f;
  p = p * u + 2.88539009286f;
  return p * s;
}

}  // namespace MCR_ISA
}  // namespace mcr
