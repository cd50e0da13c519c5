// One modality's columns of a linear layer, as linear.h takes them.
#pragma once

#include <stdint.h>

namespace mcr {

struct LinearProblem {
  const float* z;  // [N, D], rows z_stride apart
  const float* w;  // [C, D], rows w_stride apart
  int64_t rows, classes, width, z_stride, w_stride;
};

}  // namespace mcr
