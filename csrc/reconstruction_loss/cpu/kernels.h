#pragma once

#include "reconstruction_loss/problem.h"

namespace mcr {

// The loops over rows [begin, end), arithmetic in T on numbers stored as In.
template <class T, class In>
struct ReconstructionLossLoops {
  double (*squared_error)(const ReconstructionPart& part, int64_t begin, int64_t end);
  void (*squared_error_grad)(const ReconstructionPart& part, int64_t begin, int64_t end, T factor);
};

struct ReconstructionLossKernels {
  ReconstructionLossLoops<float, float> f32;
  ReconstructionLossLoops<double, double> f64;
  ReconstructionLossLoops<float, uint16_t> bf16;
};

}  // namespace mcr
