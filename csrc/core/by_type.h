// An op's row loops for either type of arithmetic.
#pragma once

namespace mcr {

template <template <class> class Loops>
struct ByType {
  Loops<float> f32;
  Loops<double> f64;

  const Loops<float>& of(float) const { return f32; }
  const Loops<double>& of(double) const { return f64; }
};

}  // namespace mcr
