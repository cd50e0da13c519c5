// What the launchers of the contrastive losses by blocks of columns tell their row algorithms.
// Exponentials are relative to the bound of any logit: s'_ab = (z_a . z_b - 1) / temperature.
#pragma once

#include "contrastive/stripe.h"

namespace mcr {

// Rows of the anchors, sorted by label, against some columns of another set of rows, sorted too.
// class_begin and class_end say which of all columns have a row's label; `own` which of them is
// the row itself, -1 where none is.
template <class T>
struct BlockStripe : SimilarityStripe<T> {
  const int64_t* own;  // [P]
};

// A logarithm of a sum in parts, of one stripe's columns: sum times 2^(max in units of log2).
template <class T>
struct PartialSums {
  T *max, *sum;  // [P]
};

// What a stripe's positives come to.
template <class T>
struct BlockPairs {
  const T* log2_sum;      // [P] of the negatives; nt_xent only
  double* loss;           // [P] in units of log2, or for sup_con of a distance 1 - z_a . z_p
  PartialSums<T> weight;  // nt_xent only
};

// What H takes of rows or of columns.
template <class T>
struct BlockStats {
  const T* weight;  // of the exponentials; its log2 where each is scaled before it is taken
  const T* other;   // nt_xent: log2 of the sum; sup_con: 1 / number of positives
};

}  // namespace mcr
