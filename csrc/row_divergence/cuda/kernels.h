// What the launcher of row_divergence calls.
#pragma once

#include "cuda/sums.h"
#include "row_divergence/problem.h"

namespace mcr {
namespace cuda {

// given [R] -> start and poison as find_starts has them, and members [R]: the perturbed rows by
// clean row, in their own order within one. Every clean row looks through all of them.
void list_members(const int64_t* given, int64_t count, int64_t rows, int64_t* start,
                  int64_t* members, double* poison, cudaStream_t stream);

// keys [R] = given [R], and -1 for a row that is none of 0..N-1; int16_t or int32_t.
template <class Key>
void narrow_rows(const int64_t* given, int64_t count, int64_t rows, Key* keys, cudaStream_t stream);
// sorted [R] ascending -> start [N + 1], where the rows held against each clean row begin. A
// row that is none of 0..N-1 goes to the first or the last one, and makes poison[0] and
// poison[N + 1], else 0, NaN. int16_t or int32_t.
template <class Key>
void find_starts(const Key* sorted, int64_t count, int64_t rows, int64_t* start, double* poison,
                 cudaStream_t stream);

// As torch holds them, [.., C].
struct GivenRows {
  const void* data;
  Storage storage;
};

// row_values [N], row_weights [N]: the sums over the rows held against each clean row, of which
// there are `members` in all. The rows are read from `perturbed` [R, C] and `clean` [N, C], not
// from the problem.
void hold_rows(const RowDivergenceProblem<float>& problem, const GivenRows& perturbed,
               const GivenRows& clean, int64_t rows, int64_t members, double* row_values,
               double* row_weights, cudaStream_t stream);

}  // namespace cuda
}  // namespace mcr
