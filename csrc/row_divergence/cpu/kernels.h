#pragma once

#include "core/by_type.h"
#include "row_divergence/problem.h"

namespace mcr {

template <class T>
struct RowDivergenceLoops {
  int width;  // classes are padded to whole vectors
  // The weighted sum over the clean rows [begin, end), their gradients written.
  double (*run)(const RowDivergenceProblem<T>&, int64_t begin, int64_t end, T* scratch);
};

}  // namespace mcr
