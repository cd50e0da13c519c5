// The contrastive losses by blocks of columns on a CPU: whole rows of a stripe, each of which one
// thread has. Rows and columns are other sets, so that an entry serves its row alone.
#pragma once

#include "contrastive/block.h"
#include "contrastive/cpu/loops.h"

namespace mcr {
namespace MCR_ISA {

// Columns of a stripe, counted as its dots are.
struct ColumnRange {
  int64_t low, high;
};

template <class T>
MCR_INLINE ColumnRange class_of(const BlockStripe<T>& stripe, int64_t a) {
  const int64_t low = stripe.class_begin[a] - stripe.first_column;
  const int64_t high = stripe.class_end[a] - stripe.first_column;
  return {low > 0 ? low : 0, high < stripe.columns ? high : stripe.columns};
}

template <class T>
MCR_INLINE ColumnRange own_column(const BlockStripe<T>& stripe, int64_t a) {
  const int64_t at = stripe.own[a] < 0 ? -1 : stripe.own[a] - stripe.first_column;
  return {at, at + 1};
}

// The columns that do not enter row a's sum.
template <class T>
MCR_INLINE ColumnRange left_out(NtXent, const BlockStripe<T>& stripe, int64_t a) {
  return {stripe.class_begin[a] - stripe.first_column, stripe.class_end[a] - stripe.first_column};
}
template <class T>
MCR_INLINE ColumnRange left_out(SupCon, const BlockStripe<T>& stripe, int64_t a) {
  return own_column(stripe, a);
}

// f(column, lanes) for the columns of a range but for those of another.
template <class T, class F>
MCR_INLINE void for_columns_without(ColumnRange all, ColumnRange without, const F& f) {
  const int64_t stop = without.low < all.high ? without.low : all.high;
  const int64_t start = without.high > all.low ? without.high : all.low;
  RowTeam<T>::for_columns(all.low, stop, f);
  RowTeam<T>::for_columns(start, all.high, f);
}

// Sums of 2^((d - max) * scale) over the stripe's columns, for rows [begin, end) of it.
template <class Loss, bool kRunningMax, class T>
void block_sums(const BlockStripe<T>& stripe, int64_t begin, int64_t end,
                const PartialSums<T>& to) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t a = stripe.first + r;
    const auto row = row_of(stripe, r);
    const ColumnRange without = left_out(Loss(), stripe, a);
    const auto each = [&](const auto& f) {
      for_columns_without<T>({0, stripe.columns}, without, f);
    };
    ExpSum<T> made;
    if (kRunningMax) {
      made = exp_sum_over<RowTeam<T>>(row, stripe.scale, each);
    } else {
      Vec<T> total = {};
      each([&](int64_t j, auto lanes) {
        total += lanes.keep(exp2((row.at(j) - T(1)) * stripe.scale));
      });
      made = {T(1), sum(total)};
    }
    to.max[a] = made.max;
    to.sum[a] = made.sum;
  }
}

// Of row a's positives p the loss, and the sum of 1 / (e^s'_ap + N'_a), whose logarithms take the
// place of the similarities.
template <class T>
void block_nt_xent_pairs(const BlockStripe<T>& stripe, int64_t begin, int64_t end,
                         const BlockPairs<T>& to) {
  const Vec<T> none = splat(T(-INFINITY));
  for (int64_t r = begin; r < end; ++r) {
    const int64_t a = stripe.first + r;
    const auto row = row_of(stripe, r);
    const ColumnRange alike = class_of(stripe, a), own = own_column(stripe, a);
    T* logs = stripe.dots + r * stripe.stride;
    Vec<T> loss = {}, top = none, total = {};
    const T log2_sum = to.log2_sum[a];
    for_columns_without<T>(alike, own, [&](int64_t j, auto lanes) {
      const Vec<T> d = row.at(j), below = (T(1) - d) * stripe.scale;
      const Vec<T> term = pair_term<T>(below + log2_sum).loss;
      loss += lanes.keep(term);
      const Vec<T> log = lanes.select(below - term, d);
      top = vmax(top, lanes.select(log, none));
      store(logs + j, log);
    });
    T max = RowTeam<T>::reduce_max(top);
    max = max > T(-INFINITY) ? max : T(0);  // a NaN is lost here; the sum has it
    for_columns_without<T>(alike, own, [&](int64_t j, auto lanes) {
      total += lanes.keep(exp2(load(logs + j) - max));
    });
    to.loss[a] = double(sum(loss));
    to.weight.max[a] = max;
    to.weight.sum[a] = sum(total);
  }
}

// Of row a's positives p the sum of 1 - z_a . z_p.
template <class T>
void block_sup_con_pairs(const BlockStripe<T>& stripe, int64_t begin, int64_t end,
                         const BlockPairs<T>& to) {
  for (int64_t r = begin; r < end; ++r) {
    const int64_t a = stripe.first + r;
    const auto row = row_of(stripe, r);
    Vec<T> total = {};
    for_columns_without<T>(class_of(stripe, a), own_column(stripe, a),
                           [&](int64_t j, auto lanes) { total += lanes.keep(T(1) - row.at(j)); });
    to.loss[a] = double(sum(total));
  }
}

// weight_a e^s'_ab + weight_b e^s'_ab of logit s' in units of log2. Where weights are logarithms
// neither power overflows.
template <bool kLogWeights, class T>
MCR_INLINE Vec<T> block_exponentials(T weight_a, Vec<T> weight_b, Vec<T> s) {
  if (!kLogWeights) return (weight_a + weight_b) * exp2(s);
  return exp2(s + weight_a) + exp2(s + weight_b);
}

// H of a positive pair: own is what is known of the row, h its two exponentials.
template <class T>
MCR_INLINE Vec<T> block_positive(NtXent, T own, Vec<T> of_column, Vec<T> s, Vec<T>) {
  return -(pair_term<T>(own - s).sigma + pair_term<T>(of_column - s).sigma);
}
template <class T>
MCR_INLINE Vec<T> block_positive(SupCon, T own, Vec<T> of_column, Vec<T>, Vec<T> h) {
  return h - (own + of_column);
}

// H of rows [begin, end) of a stripe, with the statistics of all rows and of all columns. It may
// be written where the similarities stand.
template <class Loss, bool kLogWeights, class T, class Out>
void block_weights(const BlockStripe<T>& stripe, int64_t begin, int64_t end,
                   const BlockStats<T>& rows, const BlockStats<T>& columns,
                   const WeightsPanel<Out>& panel) {
  const T* weight_b = columns.weight + stripe.first_column;
  const T* other_b = columns.other + stripe.first_column;
  for (int64_t r = begin; r < end; ++r) {
    const int64_t a = stripe.first + r;
    const auto row = row_of(stripe, r);
    const ColumnRange alike = class_of(stripe, a);
    const int64_t own = own_column(stripe, a).low;
    const T weight = rows.weight[a], other = rows.other[a];
    Out* out = panel.weights + r * panel.stride;
    const auto apart = [&](int64_t j) {
      const Vec<T> s = (row.at(j) - T(1)) * stripe.scale;
      store_as(out + j, block_exponentials<kLogWeights, T>(weight, load(weight_b + j), s));
    };
    const auto mixed = [&](int64_t j) {
      const Vec<T> s = (row.at(j) - T(1)) * stripe.scale;
      Vec<T> h = block_exponentials<kLogWeights, T>(weight, load(weight_b + j), s);
      const Vec<T> positive = block_positive<T>(Loss(), other, load(other_b + j), s, h);
      h = SomeLanes<T>(alike.low - j, alike.high - j).select(positive, h);
      store_as(out + j, SomeLanes<T>(own - j, own - j + 1).select(Vec<T>{}, h));
    };
    split_columns<T>(panel.begin, panel.end, alike.low, alike.high, apart, mixed);
  }
}

template <class Loss, class T>
constexpr BlockWeightsLoops<T> kBlockWeights = {block_weights<Loss, false, T, T>,
                                                block_weights<Loss, true, T, T>, nullptr, nullptr};
template <class Loss>
constexpr BlockWeightsLoops<float> kBlockWeights<Loss, float> = {
    block_weights<Loss, false, float, float>, block_weights<Loss, true, float, float>,
    block_weights<Loss, false, float, uint16_t>, block_weights<Loss, true, float, uint16_t>};

template <class Loss, class T, class Pairs>
constexpr BlockLoops<T> block_loops(Pairs pairs) {
  return {block_sums<Loss, false, T>, block_sums<Loss, true, T>, pairs, kBlockWeights<Loss, T>};
}

}  // namespace MCR_ISA
}  // namespace mcr
