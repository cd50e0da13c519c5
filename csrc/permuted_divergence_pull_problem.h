// What the launcher tells the row algorithms of permuted_divergence_pull.h. Plain data.
#pragma once

#include "permuted_divergence_problem.h"

namespace mcr {

// What the passes need beyond the rows and the options. Rows [M, N, row_stride], in units of log2.
template <class T>
struct PullProblem : PermutedDivergenceProblem<T> {
  const int32_t* receivers;  // [1 or M, K, N] the table's inverse, with a table
  const int64_t* order;      // [N] the row at a position, or null
  int64_t classes;
  int64_t first, last;  // the chunk of permutations
  T* pairs;             // [last - first, N, S, pair_size]: log2 of the mass, KL(q | m)
  int pair_size;
  bool after_far;       // pairs with something above 0 in front of those numbers are done
  T* clean;             // [N, C] what D keeps of the clean rows
  double* row_values;   // [S, N]
  T* grad;              // [M, N, C], rows as `order` has them
  const int32_t* skip;  // where it holds 1 there is nothing to do; or null
  T* grad_bias_rows;    // [N, C] what each row adds to the bias' gradient, or null

  MCR_ALWAYS_INLINE const T* row(int m, int64_t i) const {
    return this->contributions + (m * this->rows + i) * this->row_stride;
  }
  MCR_ALWAYS_INLINE T* grad_row(int m, int64_t i) const {
    return grad + (m * this->rows + (order ? order[i] : i)) * classes;
  }
  MCR_ALWAYS_INLINE T* pair(int s, int64_t k, int64_t i) const {
    return pairs + pair_size * (((k - first) * this->rows + i) * this->num_subsets + s);
  }
  MCR_ALWAYS_INLINE bool done(int s, int64_t k, int64_t i) const {
    return after_far && pair(s, k, i)[-1] > T(0);
  }
  // The row that takes modality m from row j under permutation k.
  MCR_ALWAYS_INLINE int64_t receiver(int m, int64_t k, int64_t j) const {
    if (this->table) {
      return receivers[((this->own_donors ? m * this->permutations : 0) + k) * this->rows + j];
    }
    const int64_t i = j - this->shift(m, k);
    return i < 0 ? i + this->rows : i;
  }
};

}  // namespace mcr
