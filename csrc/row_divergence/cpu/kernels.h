#pragma once

#include "row_divergence/problem.h"

namespace mcr {

struct RowDivergenceKernels {
  int float_width, double_width;  // classes are padded to whole vectors
  // The weighted sum over the clean rows [begin, end), their gradients written.
  double (*run_float)(const RowDivergenceProblem<float>&, int64_t begin, int64_t end,
                      float* scratch);
  double (*run_double)(const RowDivergenceProblem<double>&, int64_t begin, int64_t end,
                       double* scratch);
};

}  // namespace mcr
