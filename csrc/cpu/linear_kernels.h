// The products of csrc/linear.h, one table for each instruction set.
#pragma once

#include "linear_problem.h"

namespace mcr {

struct LinearKernels {
  void (*forward)(const LinearProblem& problem, float* out);
  void (*grad_z)(const LinearProblem& problem, const float* grad, float* grad_z);
  void (*grad_w)(const LinearProblem& problem, const float* grad, float* grad_w);
};

}  // namespace mcr
