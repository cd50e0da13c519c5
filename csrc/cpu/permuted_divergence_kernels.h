#pragma once

#include "permuted_divergence_problem.h"

namespace mcr {

struct PermutedDivergenceKernels {
  int float_width;   // rows a lane team takes at once
  int double_width;  // classes are padded to whole vectors
  // powers = 2^(x - max over the classes), row_max = that max: row team, rows [begin, end) of
  // [rows, padded]; lane teams, columns [begin, end) of one modality's [C, step_stride].
  void (*powers_float)(const PermutedDivergenceProblem<float>&, int64_t begin, int64_t end,
                       float* powers, float* row_max);
  void (*powers_double)(const PermutedDivergenceProblem<double>&, int64_t begin, int64_t end,
                        double* powers, double* row_max);
  // Blocks [begin, end): single rows of a row team, float_width rows of a lane team.
  void (*run_float)(const PermutedDivergenceProblem<float>&, int64_t begin, int64_t end,
                    PermutedDivergencePart<float>&);
  void (*run_double)(const PermutedDivergenceProblem<double>&, int64_t begin, int64_t end,
                     PermutedDivergencePart<double>&);
};

}  // namespace mcr
