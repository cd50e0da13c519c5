#pragma once

#include "core/by_type.h"
#include "permuted_divergence/problem.h"

namespace mcr {

template <class T>
struct PermutedDivergenceLoops {
  int width;  // rows that a lane team takes at once; a row team's classes are padded to it
  // The softmax's rows less their largest, in units of log2, and powers = 2^row: row team, rows
  // [begin, end) of [rows, padded]; lane teams, vectors of columns of [M, C, step_stride].
  void (*center)(const PermutedDivergenceProblem<T>&, int64_t begin, int64_t end, T* rows,
                 T* powers);
  // Blocks [begin, end): single rows of a row team, `width` rows of a lane team.
  void (*run)(const PermutedDivergenceProblem<T>&, int64_t begin, int64_t end,
              PermutedDivergencePart<T>&);
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
