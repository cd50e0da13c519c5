// Row algorithms that the contrastive losses share, for whoever runs a row (team.h, cuda/lane.h).
// Rows x are normalised to z = x / max(|x|, 1e-12), so a similarity d_ab = z_a . z_b is at most 1,
// and exponentials are taken relative to that bound:
//     2^((d_ab - 1) * log2(e) / temperature) <= 1.
// None of them underflows unless the temperature is very small; then each row keeps the maximum of
// its similarities in place of the 1.
#pragma once

#if defined(__CUDACC__)
#include "core/lane.h"
#else
#include "core/team.h"
#endif
#include "contrastive/stripe.h"

namespace mcr {
namespace MCR_ISA {

// F.normalize's
template <class T>
constexpr T kMinNorm = T(1e-12);

// Below any similarity.
template <class T>
constexpr T kNoMax = T(-4);

// A row of similarities: at(j) is d_ab of the columns j ..
template <class T>
struct SimilarityRow {
  const T* dots;
  MCR_INLINE Vec<T> at(int64_t j) const { return load(dots + j); }
};

// What H takes of one row of its own, for the temperature's scale.
template <class T>
struct RowWeight {
  T weight, max, log2_sum, scale;
  MCR_INLINE RowWeight(const RowWeights<T>& rows, int64_t a, T scale_of_batch)
      : weight(rows.weight[a]),
        max(rows.max[a]),
        log2_sum(rows.log2_sum[a]),
        scale(scale_of_batch) {}
};

// weight_a e^s_ab / sum_a + weight_b e^s_ab / sum_b. Without running maxima one exponential serves
// both rows.
template <bool kRunningMax, class T>
MCR_INLINE Vec<T> weighted_exponentials(const RowWeight<T>& row, const RowWeights<T>& rows,
                                        int64_t b, Vec<T> d) {
  const Vec<T> weight_b = load(rows.weight + b);
  if (!kRunningMax) return (row.weight + weight_b) * exp2((d - T(1)) * row.scale);
  return row.weight * exp2((d - row.max) * row.scale) +
         weight_b * exp2((d - load(rows.max + b)) * row.scale);
}

// A row's sum of 2^((d - max) * scale); max is 1 where nothing is summed.
template <class Scalar>
struct ExpSum {
  Scalar max, sum;
};

// The largest of the columns that each(f) calls f(column, lanes) for. This may lose a NaN; the sum
// does not.
template <class Team, class T, class Row, class Each>
MCR_FN typename Team::Scalar max_over(const Row& row, const Each& each) {
  Vec<T> top = splat(kNoMax<T>);
  each([&](int64_t j, auto lanes) { top = vmax(top, lanes.select(row.at(j), splat(kNoMax<T>))); });
  const auto max = Team::reduce_max(top);
  return max > kNoMax<T> ? max : T(1);
}

// Over the same columns, relative to their maximum, and rounded as one number.
template <class Team, class T, class Row, class Each>
MCR_FN ExpSum<typename Team::Scalar> exp_sum_over(const Row& row, T scale, const Each& each) {
  const auto max = max_over<Team, T>(row, each);
  Vec<T> sum = {};
  each([&](int64_t j, auto lanes) { sum += lanes.keep(exp2((row.at(j) - max) * scale)); });
  return {max, Team::reduce_sum(sum)};
}

// The columns of row a in a batch that is not sorted, for teams whose lanes hold one column each.
template <class Team>
struct LabelledColumns {
  const int64_t* codes;  // [columns]
  const bool* there;     // [columns] rows that count
  int64_t a, columns;

  MCR_FN bool alike(int64_t j) const { return codes[j] == codes[a]; }
  template <class F>
  MCR_FN void others(const F& f) const {
    Team::for_columns(0, columns, [&](int64_t j, auto lanes) {
      if (there[j] && j != a) f(j, lanes);
    });
  }
  template <class F>
  MCR_FN void positives(const F& f) const {
    others([&](int64_t j, auto lanes) {
      if (alike(j)) f(j, lanes);
    });
  }
  template <class F>
  MCR_FN void negatives(const F& f) const {
    others([&](int64_t j, auto lanes) {
      if (!alike(j)) f(j, lanes);
    });
  }
  // An exact sum: there are fewer than 2^24.
  MCR_FN int64_t count_positives() const {
    float count = 0;
    positives([&](int64_t, auto lanes) { count += lanes.keep(1.0f); });
    return int64_t(Team::reduce_sum(count));
  }
};

}  // namespace MCR_ISA
}  // namespace mcr
