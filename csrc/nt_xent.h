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
inline PairTerm<T> pair_term(Vec<T> x) {
  const Vec<T> t = exp2(minus_abs(x));
  const Vec<T> u = t + T(1);
  // log(1 + t) = t log(u) / (u - 1) undoes the rounding of u
  const Vec<T> log2_u = u == T(1) ? t * T(1.44269504088896340736) : log2(u) * (t / (u - T(1)));
  return {vmax(x, Vec<T>{}) + log2_u, (x >= T(0) ? splat(T(1)) : t) / u};
}

// x of (a, b), from log N_a and d_ab.
template <class T>
inline PairTerm<T> pair_term(const SimilarityStripe<T>& stripe, const RowWeights<T>& rows,
                             int64_t a, Vec<T> d) {
  return pair_term<T>((rows.max[a] - d) * stripe.scale + rows.log2_sum[a]);
}

// x of (b, a) for the rows b ..
template <class T>
inline PairTerm<T> pair_terms(const SimilarityStripe<T>& stripe, const RowWeights<T>& rows,
                              int64_t b, Vec<T> d) {
  return pair_term<T>((load(rows.max + b) - d) * stripe.scale + load(rows.log2_sum + b));
}

// Positive pairs of one tile, columns [begin, end), above the diagonal: one similarity serves (a,
// p) and (p, a). Writes the tile's own row sums of sigma [rows], adds the columns' to c [P], and
// returns the summed loss in units of log2.
template <class T>
double nt_xent_pairs(const SimilarityStripe<T>& stripe, int64_t begin, int64_t end,
                     const RowWeights<T>& rows, T* row_c, double* c) {
  T col_c[kTileColumns] = {};
  double loss = 0;
  for (int64_t r = 0; r < stripe.rows; ++r) {
    const int64_t a = stripe.first + r, last = stripe.class_end[a] - stripe.first;
    Vec<T> row_loss = {}, row_sigma = {};
    const auto add = [&](int64_t j, auto lanes) {
      const Vec<T> d = similarity(stripe, r, j);
      const auto ap = pair_term(stripe, rows, a, d);
      const auto pa = pair_terms(stripe, rows, stripe.first + j, d);
      row_loss += lanes.keep(ap.loss + pa.loss);
      row_sigma += lanes.keep(ap.sigma);
      store(col_c + j - begin, load(col_c + j - begin) + lanes.keep(pa.sigma));
    };
    for_vectors<T>(r + 1 > begin ? r + 1 : begin, last < end ? last : end, add);
    row_c[r] = sum(row_sigma);
    loss += double(sum(row_loss));
  }
  for (int64_t j = begin; j < end; ++j) c[stripe.first + j] += double(col_c[j - begin]);
  return loss;
}

// H of rows [begin, end) of the stripe and the panel's columns, written to the panel's own memory.
template <bool kRunningMax, class T, class Out>
void nt_xent_weights(const SimilarityStripe<T>& stripe, int64_t begin, int64_t end,
                     const RowWeights<T>& rows, const WeightsPanel<Out>& panel) {
  constexpr int W = kWidth<T>;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t a = stripe.first + r;
    const int64_t low = stripe.class_begin[a] - stripe.first;
    const int64_t high = stripe.class_end[a] - stripe.first;
    Out* out = panel.weights + r * panel.stride - panel.begin;
    for (int64_t j = panel.begin; j < panel.end; j += W) {
      const Vec<T> d = similarity(stripe, r, j);
      const int64_t b = stripe.first + j;
      Vec<T> h = {};
      if (j < low || j + W > high) h = weighted_exponentials<kRunningMax>(stripe, rows, a, b, d);
      if (j < high && j + W > low) {
        const Vec<T> positive =
            pair_term(stripe, rows, a, d).sigma + pair_terms(stripe, rows, b, d).sigma;
        h = SomeLanes<T>(low - j, high - j).select(-positive, h);
        h = SomeLanes<T>(r - j, r - j + 1).select(Vec<T>{}, h);
      }
      store_as(out + j, h);
    }
  }
}

}  // namespace MCR_ISA
}  // namespace mcr
