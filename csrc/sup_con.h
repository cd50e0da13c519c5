// The supervised contrastive loss' row algorithms. With E_a the sum over j != a of e^s_aj and P(a)
// the positives of a, over the anchors that have one,
//     loss_a = log E_a - 1/|P(a)| sum_p s_ap,
// and the gradient is H Z with H symmetric, 0 on the diagonal:
//     H_ab = e^s_ab / E_a + e^s_ab / E_b - [a and b are positives] (1/|P(a)| + 1/|P(b)|).
#pragma once

#include "similarity.h"

namespace mcr {
namespace MCR_ISA {

// Sum of d over the positive pairs of one tile, columns [begin, end), above the diagonal, each
// weighted by 2 / |P|: a and p are in the same class, so one entry serves (a, p) and (p, a).
template <class T>
double sup_con_positives(const SimilarityStripe<T>& stripe, int64_t begin, int64_t end) {
  double total = 0;
  for (int64_t r = 0; r < stripe.rows; ++r) {
    const int64_t a = stripe.first + r, last = stripe.class_end[a] - stripe.first;
    const int64_t positives = stripe.class_end[a] - stripe.class_begin[a] - 1;
    Vec<T> row = {};
    for_vectors<T>(r + 1 > begin ? r + 1 : begin, last < end ? last : end,
                   [&](int64_t j, auto lanes) { row += lanes.keep(similarity(stripe, r, j)); });
    if (positives > 0) total += double(sum(row)) * 2 / double(positives);
  }
  return total;
}

// H of rows [begin, end) of the stripe and the panel's columns, written to the panel's own memory.
template <bool kRunningMax, class T, class Out>
void sup_con_weights(const SimilarityStripe<T>& stripe, int64_t begin, int64_t end,
                     const RowWeights<T>& rows, const WeightsPanel<Out>& panel) {
  constexpr int W = kWidth<T>;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t a = stripe.first + r;
    const int64_t low = stripe.class_begin[a] - stripe.first;
    const int64_t high = stripe.class_end[a] - stripe.first;
    const T both = high - low > 1 ? T(2) / T(high - low - 1) : T(0);
    Out* out = panel.weights + r * panel.stride - panel.begin;
    for (int64_t j = panel.begin; j < panel.end; j += W) {
      const Vec<T> d = similarity(stripe, r, j);
      Vec<T> h = weighted_exponentials<kRunningMax>(stripe, rows, a, stripe.first + j, d);
      if (j < high && j + W > low) {
        h = SomeLanes<T>(low - j, high - j).select(h - both, h);
        h = SomeLanes<T>(r - j, r - j + 1).select(Vec<T>{}, h);
      }
      store_as(out + j, h);
    }
  }
}

}  // namespace MCR_ISA
}  // namespace mcr
