// Row algorithms that the contrastive losses share, for whoever runs a row (team.h, cuda/lane.h).
// Rows x are normalised to z = x / max(|x|, 1e-12), so a similarity d_ab = z_a . z_b is at most 1,
// and exponentials are taken relative to that bound:
//     2^((d_ab - 1) * log2(e) / temperature) <= 1.
// None of them underflows unless the temperature is very small; then each row keeps the maximum of
// its similarities in place of the 1.
#pragma once

#if defined(__CUDACC__)
#include "cuda/lane.h"
#else
#include "team.h"
#endif
#include "similarity_stripe.h"

namespace mcr {
namespace MCR_ISA {

// F.normalize's
template <class T>
constexpr T kMinNorm = T(1e-12);

// Below any similarity.
template <class T>
constexpr T kNoMax = T(-4);

// d_ab of row r and the columns j ..
template <class T>
MCR_INLINE Vec<T> similarity(const SimilarityStripe<T>& stripe, int64_t r, int64_t j) {
  return load(stripe.dots + r * stripe.stride + j);
}
template <class T>
MCR_INLINE Vec<T> similarity(const ScaledStripe<T>& stripe, int64_t r, int64_t j) {
  return load(stripe.dots + r * stripe.stride + j) * stripe.inverse[stripe.first + r] *
         load(stripe.inverse + stripe.first_column + j);
}

// weight_a e^s_ab / sum_a + weight_b e^s_ab / sum_b. Without running maxima one exponential serves
// both rows.
template <bool kRunningMax, class T>
MCR_INLINE Vec<T> weighted_exponentials(const SimilarityStripe<T>& stripe,
                                        const RowWeights<T>& rows, int64_t a, int64_t b, Vec<T> d) {
  const Vec<T> weight_b = load(rows.weight + b);
  if (!kRunningMax) return (rows.weight[a] + weight_b) * exp2((d - T(1)) * stripe.scale);
  return rows.weight[a] * exp2((d - rows.max[a]) * stripe.scale) +
         weight_b * exp2((d - load(rows.max + b)) * stripe.scale);
}

// A row's sum of 2^((d - max) * scale); max is 1 where nothing is summed.
template <class Scalar>
struct ExpSum {
  Scalar max, sum;
};

// Over the columns of a whole row but those of low .. high - 1.
template <class Team, bool kRunningMax, class T>
MCR_FN ExpSum<typename Team::Scalar> exp_sum_outside(const ScaledStripe<T>& stripe, int64_t r,
                                                     int64_t low, int64_t high) {
  constexpr int64_t kRun = 1 << 13;  // columns whose sum is rounded as one number
  typename Team::Scalar max = T(1);
  if (kRunningMax) {
    Vec<T> top = splat(kNoMax<T>);
    const auto raise = [&](int64_t j, auto lanes) {
      // NaN must stay, so the comparison is the one that it fails
      const Vec<T> d = lanes.select(similarity(stripe, r, j), splat(kNoMax<T>));
      top = vmax(top, d);
    };
    Team::for_columns(0, low, raise);
    Team::for_columns(high, stripe.columns, raise);
    max = Team::reduce_max(top);
    max = max > kNoMax<T> ? max : T(1);
  }
  Vec<T> sum = {};
  const auto add = [&](int64_t begin, int64_t end) {
    for (int64_t from = begin; from < end; from += kRun) {
      Vec<T> run = {};
      Team::for_columns(from, from + kRun < end ? from + kRun : end, [&](int64_t j, auto lanes) {
        run += lanes.keep(exp2((similarity(stripe, r, j) - max) * stripe.scale));
      });
      sum += run;
    }
  };
  add(0, low);
  add(high, stripe.columns);
  return {max, Team::reduce_sum(sum)};
}

}  // namespace MCR_ISA
}  // namespace mcr
