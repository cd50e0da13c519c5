// What the launcher tells the row algorithms of sides.h. Plain data.
#pragma once

#include "permuted_divergence/problem.h"

namespace mcr {

// What the pass over the rows keeps of a pair for the pass over the donations.
template <class T>
struct PairNumbers {
  T log2_mass, kl_q;  // of the perturbed row: the normaliser's log2, and KL(q | mean) over ln2
};

// What SidesProblem::ratios holds of a pair besides the ratio of two masses.
constexpr float kNothing = 0.0f;  // it adds nothing: dropped, or a row that is its own donor
constexpr float kLeft = -1.0f;    // it is left to the passes over all pairs

// What the passes need beyond the rows and the options. Rows [M, N, row_stride], in units of log2.
template <class T>
struct SidesProblem : PermutedDivergenceProblem<T> {
  const int32_t* receivers;  // [1 or M, K, N] the table's inverse, with a table
  const int64_t* order;      // [N] the row at a position, or null
  int64_t classes;
  int64_t first, last;    // the chunk of permutations
  PairNumbers<T>* pairs;  // [last - first, N, S]
  const T* ratios;        // the same, where the kernels of a band went first; or null
  int32_t* left;          // [2, S, N] 1 for rows, then for donors, with a pair that those left
  T* clean;               // [N, C] what D keeps of the clean rows
  T* clean_lse;           // [N] their normalisers' log2 (binary: 0)
  double* row_values;     // [S, N]
  T* grad;                // [M, N, C], rows as `order` has them
  const int32_t* skip;    // where it holds 1 there is nothing to do; or null
  T* grad_bias_rows;      // [N, C] what each row adds to the bias' gradient, or null

  MCR_ALWAYS_INLINE const T* row(int m, int64_t i) const {
    return this->contributions + (m * this->rows + i) * this->row_stride;
  }
  MCR_ALWAYS_INLINE T* grad_row(int m, int64_t i) const {
    return grad + (m * this->rows + (order ? order[i] : i)) * classes;
  }
  MCR_ALWAYS_INLINE int64_t pair(int s, int64_t k, int64_t i) const {
    return ((k - first) * this->rows + i) * this->num_subsets + s;
  }
  MCR_ALWAYS_INLINE PairNumbers<T>& numbers(int s, int64_t k, int64_t i) const {
    return pairs[pair(s, k, i)];
  }
  // Whether the kernels of a band left pairs of a row, or of a donor of modality m. The marks are
  // read at once.
  MCR_ALWAYS_INLINE bool row_has_pairs(int64_t i) const {
    uint32_t any = 0;
    for (int s = 0; s < this->num_subsets; ++s) any |= uint32_t(left[s * this->rows + i]);
    return any != 0;
  }
  MCR_ALWAYS_INLINE bool donor_has_pairs(int m, int64_t j) const {
    uint32_t any = 0;
    for (int s = 0; s < this->num_subsets; ++s) {
      const uint32_t mark = uint32_t(left[(this->num_subsets + s) * this->rows + j]);
      any |= mark & this->subsets[s] >> m;
    }
    return any != 0;
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
