// The supervised contrastive loss' row algorithms. With E_a the sum over j != a of e^s_aj and P(a)
// the positives of a, over the anchors that have one,
//     loss_a = log E_a - 1/|P(a)| sum_p s_ap,
// and the gradient is H Z with H symmetric, 0 on the diagonal:
//     H_ab = e^s_ab / E_a + e^s_ab / E_b - [a and b are positives] (1/|P(a)| + 1/|P(b)|).
#pragma once

#include "contrastive/similarity.h"

namespace mcr {
namespace MCR_ISA {

// The loss as it is chosen by its type, and whole rows of it where one has all columns of a row.
struct SupCon {
  // A row of whole rows, with `count` positives: its loss if there are any, and what H takes of it.
  template <class Team, class T>
  MCR_FN static void row(const SimilarityRow<T>& row, const LabelledColumns<Team>& columns,
                         int64_t count, T scale, const RowResults<T>& to) {
    const int64_t a = columns.a;
    const auto others = exp_sum_over<Team>(row, scale, [&](const auto& f) { columns.others(f); });
    Vec<T> positives = {};
    columns.positives([&](int64_t j, auto lanes) { positives += lanes.keep(row.at(j)); });
    const auto sum = Team::reduce_sum(positives);
    const auto log2_sum = Team::scalar_log2(others.sum);
    if (!Team::leads()) return;
    to.loss[a] = 0;
    if (count > 0) {
      // the two large parts, the maximum and a positive's similarity, cancel before they are scaled
      const double apart = double(others.max) - double(sum) / double(count);
      to.loss[a] = double(log2_sum) + apart * double(scale);
    }
    to.weight[a] = count > 0 ? T(1) / others.sum : T(0);
    to.max[a] = others.max;
    to.log2_sum[a] = log2_sum;
  }

  // H_ab of one pair that counts, `count` the positives of row a.
  template <class T>
  MCR_INLINE static Vec<T> weight(const RowWeight<T>& own, const RowWeights<T>& rows, int64_t b,
                                  Vec<T> d, bool positive, int64_t count) {
    const Vec<T> h = weighted_exponentials<true, T>(own, rows, b, d);
    return positive ? h - T(2) / T(count) : h;
  }
};

}  // namespace MCR_ISA
}  // namespace mcr
