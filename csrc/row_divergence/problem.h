// What the launcher tells the row loops of row_divergence.
#pragma once

#include <stdint.h>

#include "divergence/kind.h"

namespace mcr {

template <class T>
struct RowDivergenceProblem {
  const T* perturbed;      // [R, C]
  const T* clean;          // [N, C]
  const int64_t* start;    // [N + 1] where in `members` the rows held against clean row i begin
  const int64_t* members;  // [R] perturbed rows, by clean row
  const T* row_weight;     // [R] or null
  T factor;  // of every weight: 1, or 1 / C where the divergence is a mean over the classes
  int64_t classes, steps;
  DivergenceKind divergence;
  int group;  // rows that go through the two passes together, 1 to kGroup
  bool want_grad;
  T* grad_perturbed;  // [R, C] or null
  T* grad_clean;      // [N, C] or null
};

}  // namespace mcr
