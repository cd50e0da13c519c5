// NT-Xent's row algorithms. With N_a the sum over negatives n of e^s_an, for a positive pair (a, p)
//     loss_ap = log(1 + e^x),  sigma_ap = e^x / (1 + e^x),  x = log N_a - s_ap,
// and the gradient is H Z with c_a = sum_p sigma_ap and H symmetric:
//     H_ab = c_a e^s_ab / N_a + c_b e^s_ab / N_b on negatives, -(sigma_ab + sigma_ba) on positives.
#pragma once

#include "similarity.h"

namespace mcr {
namespace MCR_ISA {

template <class T>
struct PairTerm {
  Vec<T> loss;   // log2(1 + 2^x)
  Vec<T> sigma;  // 2^x / (1 + 2^x)
};

// Neither end overflows or cancels; x = -inf (no negatives) gives 0 and 0.
template <class T>
MCR_INLINE PairTerm<T> pair_term(Vec<T> x) {
  const Vec<T> t = exp2(minus_abs(x));
  return {vmax(x, Vec<T>{}) + log2_1p(t), (x >= T(0) ? splat(T(1)) : t) / (t + T(1))};
}

// x of (a, b), from log N_a and d_ab.
template <class T>
MCR_INLINE PairTerm<T> pair_term(const SimilarityStripe<T>& stripe, const RowWeights<T>& rows,
                                 int64_t a, Vec<T> d) {
  return pair_term<T>((rows.max[a] - d) * stripe.scale + rows.log2_sum[a]);
}

// x of (b, a) for the rows b ..
template <class T>
MCR_INLINE PairTerm<T> pair_terms(const SimilarityStripe<T>& stripe, const RowWeights<T>& rows,
                                  int64_t b, Vec<T> d) {
  return pair_term<T>((load(rows.max + b) - d) * stripe.scale + load(rows.log2_sum + b));
}

// Row r of whole rows: its loss over its positives, c_a, and what H takes of it.
template <class Team, bool kRunningMax, class T>
MCR_FN void nt_xent_row(const ScaledStripe<T>& stripe, int64_t r, const RowResults<T>& to) {
  const int64_t a = stripe.first + r, low = stripe.class_begin[a], high = stripe.class_end[a];
  const auto negatives = exp_sum_outside<Team, kRunningMax>(stripe, r, low, high);
  const auto log2_sum = Team::scalar_log2(negatives.sum);
  Vec<T> losses = {}, sigmas = {};
  const auto add = [&](int64_t j, auto lanes) {
    const Vec<T> d = similarity(stripe, r, j);
    const auto term = pair_term<T>((negatives.max - d) * stripe.scale + log2_sum);
    losses += lanes.keep(term.loss);
    sigmas += lanes.keep(term.sigma);
  };
  Team::for_columns(low, a, add);
  Team::for_columns(a + 1, high, add);
  const auto loss = Team::reduce_sum(losses), c = Team::reduce_sum(sigmas);
  if (!Team::leads()) return;
  to.loss[a] = loss;
  to.c[a] = c;
  to.weight[a] = c == T(0) ? T(0) : c / negatives.sum;  // a row without negatives has c = 0
  to.max[a] = negatives.max;
  to.log2_sum[a] = log2_sum;
}

// sink(j, h): H of row r and the stripe's columns begin .. end - 1, in whole vectors.
template <class Team, bool kRunningMax, class Stripe, class T, class Sink>
MCR_INLINE void nt_xent_weights(const Stripe& stripe, int64_t r, int64_t begin, int64_t end,
                                const RowWeights<T>& rows, const Sink& sink) {
  constexpr int W = kWidth<T>;
  const int64_t a = stripe.first + r, diagonal = a - stripe.first_column;
  const int64_t low = stripe.class_begin[a] - stripe.first_column;
  const int64_t high = stripe.class_end[a] - stripe.first_column;
  Team::for_columns(begin, end, [&](int64_t j, auto) {
    const Vec<T> d = similarity(stripe, r, j);
    const int64_t b = stripe.first_column + j;
    Vec<T> h = {};
    if (j < low || j + W > high) h = weighted_exponentials<kRunningMax, T>(stripe, rows, a, b, d);
    if (j < high && j + W > low) {
      const Vec<T> positive =
          pair_term<T>(stripe, rows, a, d).sigma + pair_terms<T>(stripe, rows, b, d).sigma;
      h = SomeLanes<T>(low - j, high - j).select(-positive, h);
      h = SomeLanes<T>(diagonal - j, diagonal - j + 1).select(Vec<T>{}, h);
    }
    sink(j, h);
  });
}

}  // namespace MCR_ISA
}  // namespace mcr
