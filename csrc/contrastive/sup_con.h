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
  // Row a of whole rows, with `count` positives, which each(f) calls f(column, lanes) for: its loss
  // if there are any, and what H takes of it.
  template <class Team, class T, class Row, class Each>
  MCR_FN static void finish_row(int64_t a, const Row& row,
                                const ExpSum<typename Team::Scalar>& others, T scale, int64_t count,
                                const Each& each, const RowResults<T>& to) {
    Vec<T> positives = {};
    each([&](int64_t j, auto lanes) { positives += lanes.keep(row.at(j)); });
    const auto sum = Team::reduce_sum(positives);
    const auto log2_sum = Team::scalar_log2(others.sum);
    if (!Team::leads()) return;
    to.loss[a] = 0;
    if (count > 0) {
      // the two large parts, the maximum and a positive's similarity, cancel before they are scaled
      const double apart = double(others.max) - double(sum) / double(count);
      to.loss[a] = double(log2_sum) + apart * double(scale);
    }
    to.c[a] = T(1);
    to.weight[a] = count > 0 ? T(1) / others.sum : T(0);
    to.max[a] = others.max;
    to.log2_sum[a] = log2_sum;
  }

  template <class Team, bool kRunningMax, class T>
  MCR_FN static void row(const ScaledStripe<T>& stripe, int64_t r, const RowResults<T>& to) {
    const int64_t a = stripe.first + r, low = stripe.class_begin[a], high = stripe.class_end[a];
    const auto others = exp_sum_outside<Team, kRunningMax>(stripe, r, a, a + 1);
    const auto positives = [&](const auto& f) {
      Team::for_columns(low, a, f);
      Team::for_columns(a + 1, high, f);
    };
    finish_row<Team, T>(a, row_of(stripe, r), others, stripe.scale, high - low - 1, positives, to);
  }

  // The same of a batch that is not sorted.
  template <class Team, class T>
  MCR_FN static void row(const SimilarityRow<T>& row, const LabelledColumns<Team>& columns,
                         int64_t count, T scale, const RowResults<T>& to) {
    const auto others = exp_sum_over<Team>(row, scale, [&](const auto& f) { columns.others(f); });
    const auto positives = [&](const auto& f) { columns.positives(f); };
    finish_row<Team, T>(columns.a, row, others, scale, count, positives, to);
  }

  // H_ab of one pair that counts, `count` the positives of row a.
  template <class T>
  MCR_INLINE static Vec<T> weight(const RowWeight<T>& own, const RowWeights<T>& rows, int64_t b,
                                  Vec<T> d, bool positive, int64_t count) {
    const Vec<T> h = weighted_exponentials<true, T>(own, rows, b, d);
    return positive ? h - T(2) / T(count) : h;
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
