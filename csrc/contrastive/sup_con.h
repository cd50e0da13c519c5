// The supervised contrastive loss' row algorithms. With E_a the sum over j != a of e^s_aj and P(a)
// the positives of a, over the anchors that have one,
//     loss_a = log E_a - 1/|P(a)| sum_p s_ap,
// and the gradient is H Z with H symmetric, 0 on the diagonal:
//     H_ab = e^s_ab / E_a + e^s_ab / E_b - [a and b are positives] (1/|P(a)| + 1/|P(b)|).
#pragma once

#include "contrastive/similarity.h"

namespace mcr {
namespace MCR_ISA {

// The loss as loops over rows take it.
struct SupCon {
  // Row r of whole rows: its loss if it has positives, and what H takes of it.
  template <class Team, bool kRunningMax, class T>
  MCR_FN static void row(const ScaledStripe<T>& stripe, int64_t r, const RowResults<T>& to) {
    const int64_t a = stripe.first + r, low = stripe.class_begin[a], high = stripe.class_end[a];
    const auto others = exp_sum_outside<Team, kRunningMax>(stripe, r, a, a + 1);
    const auto row = row_of(stripe, r);
    Vec<T> positives = {};
    const auto add = [&](int64_t j, auto lanes) { positives += lanes.keep(row.at(j)); };
    Team::for_columns(low, a, add);
    Team::for_columns(a + 1, high, add);
    const auto sum = Team::reduce_sum(positives);
    const auto log2_sum = Team::scalar_log2(others.sum);
    if (!Team::leads()) return;
    const int64_t count = high - low - 1;
    to.loss[a] = 0;
    if (count > 0) {
      // the two large parts, the maximum and a positive's similarity, cancel before they are scaled
      const double apart = double(others.max) - double(sum) / double(count);
      to.loss[a] = double(log2_sum) + apart * double(stripe.scale);
    }
    to.c[a] = T(1);
    to.weight[a] = count > 0 ? T(1) / others.sum : T(0);
    to.max[a] = others.max;
    to.log2_sum[a] = log2_sum;
  }

  // sink(j, finish(j, h)): H of row r and the stripe's columns begin .. end - 1, in whole vectors.
  template <class Team, bool kRunningMax, class Stripe, class T, class Finish, class Sink>
  MCR_INLINE static void weights(const Stripe& stripe, int64_t r, int64_t begin, int64_t end,
                                 const RowWeights<T>& rows, const Finish& finish,
                                 const Sink& sink) {
    const int64_t a = stripe.first + r, first = stripe.first_column, diagonal = a - first;
    const int64_t low = stripe.class_begin[a] - first, high = stripe.class_end[a] - first;
    const T both = high - low > 1 ? T(2) / T(high - low - 1) : T(0);
    const auto row = row_of(stripe, r);
    const RowWeight<T> own(rows, a, stripe.scale);
    const auto exponentials = [&](int64_t j) {
      return weighted_exponentials<kRunningMax, T>(own, rows, first + j, row.at(j));
    };
    const auto negatives = [&](int64_t j) { return finish(j, exponentials(j)); };
    const auto positives = [&](int64_t j) {
      Vec<T> h = exponentials(j);
      h = SomeLanes<T>(low - j, high - j).select(h - both, h);
      return finish(j, SomeLanes<T>(diagonal - j, diagonal - j + 1).select(Vec<T>{}, h));
    };
    split_columns<T>(
        begin, end, low, high,
        [&](int64_t from, int64_t to) { Team::map_columns(from, to, negatives, sink); },
        [&](int64_t from, int64_t to) { Team::map_columns(from, to, positives, sink); });
  }
};

}  // namespace MCR_ISA
}  // namespace mcr
