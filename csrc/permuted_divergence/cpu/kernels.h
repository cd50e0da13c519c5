#pragma once

#include "permuted_divergence/problem.h"

namespace mcr {

struct PermutedDivergenceKernels {
  int float_width;   // rows a lane team takes at once
  int double_width;  // classes are padded to whole vectors
  // The softmax's rows less their largest, in units of log2, and powers = 2^row: row team, rows
  // [begin, end) of [rows, padded]; lane teams, vectors of columns of [M, C, step_stride].
  void (*center_float)(const PermutedDivergenceProblem<float>&, int64_t begin, int64_t end,
                       float* rows, float* powers);
  void (*center_double)(const PermutedDivergenceProblem<double>&, int64_t begin, int64_t end,
                        double* rows, double* powers);
  // Blocks [begin, end): single rows of a row team, float_width rows of a lane team.
  void (*run_float)(const PermutedDivergenceProblem<float>&, int64_t begin, int64_t end,
                    PermutedDivergencePart<float>&);
  void (*run_double)(const PermutedDivergenceProblem<double>&, int64_t begin, int64_t end,
                     PermutedDivergencePart<double>&);
};

// One modality's columns of a linear layer, as linear.h takes them.
struct LinearProblem {
  const float* z;  // [N, D], rows z_stride apart
  const float* w;  // [C, D], rows w_stride apart
  int64_t rows, classes, width, z_stride, w_stride;
};

struct LinearKernels {
  void (*forward)(const LinearProblem& problem, float* out);
  void (*grad_z)(const LinearProblem& problem, const float* grad, float* grad_z);
  void (*grad_w)(const LinearProblem& problem, const float* grad, float* grad_w);
};

}  // namespace mcr
