// NT-Xent's row algorithms. With N_a the sum over negatives n of e^s_an, for a positive pair (a, p)
//     loss_ap = log(1 + e^x),  sigma_ap = e^x / (1 + e^x),  x = log N_a - s_ap,
// and the gradient is H Z with c_a = sum_p sigma_ap and H symmetric:
//     H_ab = c_a e^s_ab / N_a + c_b e^s_ab / N_b on negatives, -(sigma_ab + sigma_ba) on positives.
#pragma once

#include "contrastive/similarity.h"

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
MCR_INLINE PairTerm<T> pair_term(const RowWeight<T>& row, Vec<T> d) {
  return pair_term<T>((row.max - d) * row.scale + row.log2_sum);
}

// x of (b, a) for the rows b ..
template <class T>
MCR_INLINE PairTerm<T> pair_terms(const RowWeights<T>& rows, T scale, int64_t b, Vec<T> d) {
  return pair_term<T>((load(rows.max + b) - d) * scale + load(rows.log2_sum + b));
}

// The loss as it is chosen by its type, and whole rows of it where one has all columns of a row.
struct NtXent {
  // A row of whole rows: its loss, and what H takes of it.
  template <class Team, class T>
  MCR_FN static void row(const SimilarityRow<T>& row, const LabelledColumns<Team>& columns, int64_t,
                         T scale, const RowResults<T>& to) {
    const int64_t a = columns.a;
    const auto negatives =
        exp_sum_over<Team>(row, scale, [&](const auto& f) { columns.negatives(f); });
    const auto log2_sum = Team::scalar_log2(negatives.sum);
    Vec<T> losses = {}, sigmas = {};
    columns.positives([&](int64_t j, auto lanes) {
      const auto term = pair_term<T>((negatives.max - row.at(j)) * scale + log2_sum);
      losses += lanes.keep(term.loss);
      sigmas += lanes.keep(term.sigma);
    });
    const auto loss = Team::reduce_sum(losses), c = Team::reduce_sum(sigmas);
    if (!Team::leads()) return;
    to.loss[a] = loss;
    to.weight[a] = c == T(0) ? T(0) : c / negatives.sum;  // a row without negatives has c = 0
    to.max[a] = negatives.max;
    to.log2_sum[a] = log2_sum;
  }

  // H_ab of one pair that counts.
  template <class T>
  MCR_INLINE static Vec<T> weight(const RowWeight<T>& own, const RowWeights<T>& rows, int64_t b,
                                  Vec<T> d, bool positive, int64_t) {
    if (!positive) return weighted_exponentials<true, T>(own, rows, b, d);
    return -(pair_term<T>(own, d).sigma + pair_terms<T>(rows, own.scale, b, d).sigma);
  }
};

}  // namespace MCR_ISA
}  // namespace mcr
