// What the launcher of row_divergence calls.
#pragma once

#include "cuda/sums.h"
#include "row_divergence_problem.h"

namespace mcr {
namespace cuda {

// sorted [R] ascending -> start [N + 1], where the rows held against each clean row begin. Stops
// the kernel at a row that is none of 0..N-1.
void find_starts(const int64_t* sorted, int64_t count, int64_t rows, int64_t* start,
                 cudaStream_t stream);

// row_values [N], row_weights [N]: the sums over the rows held against each clean row.
void hold_rows(const RowDivergenceProblem<float>& problem, int64_t rows, double* row_values,
               double* row_weights, cudaStream_t stream);

}  // namespace cuda
}  // namespace mcr
