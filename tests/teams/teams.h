// The teams that rows.cpp is compiled for.
#pragma once

#include "permuted_divergence/far_problem.h"
#include "row_divergence/problem.h"

// `spare_steps`: steps beyond the row's end, as where a GPU's team has more than a row needs.
#define MCR_TEAM(NAME)                                                                          \
  namespace NAME {                                                                              \
  void pull(const SidesProblem<float>& problem, int64_t chunk, int64_t spare_steps, int parts); \
  void pull_far(FarProblem<float> problem, int64_t chunk, int parts);                           \
  void hold(const RowDivergenceProblem<float>& problem, int64_t rows, int64_t spare_steps,      \
            int parts, double* sums);                                                           \
  }

namespace mcr {
MCR_TEAM(lanes4)
MCR_TEAM(lanes8)
MCR_TEAM(lanes32)
}  // namespace mcr
