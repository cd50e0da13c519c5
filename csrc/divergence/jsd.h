// The Jensen-Shannon divergence between a clean row and the perturbed rows held against it, with
// its gradient to both.
//
// With d = log2(q / p), t = 2^-|d| and h = log2((1 + t) / 2),
//     2 JSD / ln 2 = sum_c max(p, q) * b(|d|),       b = -(1 + t) h - t |d|  >= 0
//     log2(q / m)  = min(d, 0) - h,                  log2(p / m) = -max(d, 0) - h
//     dJSD / dw    = q / 2 * (log(q / m) - KL(q | m)),  dJSD / dz likewise with p.
// Every term of the sum is positive, and d comes from the difference of the logits and not from two
// rounded logs: nearby rows lose eps over their distance, where the plain formula loses eps over
// its square. q comes from w itself and not from z and the difference, which tells nothing of w
// where z is a mask.
#pragma once

#include "divergence/rows.h"

namespace mcr {
namespace MCR_ISA {

// From this JSD on, over ln2 / 2, two rows are far apart (Jsd::far_terms): 0.0035 nats.
constexpr double kFarJsd = 0.01;

// d = log2(q / p), but no less than what leaves q nothing beside p: log2(p / m) comes from it by
// adding log2(q / m), which would lose its digits to the d of a mask.
template <class V>
MCR_INLINE V within_sight(V log2_ratio) {
  using T = typename ElementOf<V>::type;
  return vmax(V{} - T(sizeof(T) == sizeof(float) ? 32 : 64), log2_ratio);
}

// One class: d, t = 2^-|d| and t - 1.
template <class V>
struct Ratio {
  V d, t, tm1;
  MCR_INLINE explicit Ratio(V log2_ratio)
      : d(within_sight(log2_ratio)), t(exp2_and_m1(minus_abs(d), tm1)) {}
};

// max(p, q) b(|d|); with kLogs also log2(q / m) and log2(p / m).
template <bool kLogs, class V>
MCR_INLINE V jsd_term(const Ratio<V>& ratio, V p, V q, V& log2_qm, V& log2_pm) {
  const V d = ratio.d, h = log2_half1p(ratio.tm1);
  if (kLogs) {
    log2_qm = vmin(d, V{}) - h;
    log2_pm = log2_qm - d;
  }
  return (V{} < d ? q : p) * (ratio.t * (minus_abs(d) - h) - h);
}

// Equal rows but for a rounding can sum up to a rounding below 0. NaN stays NaN.
template <class V>
MCR_INLINE V not_negative(V x) {
  return vmax(V{}, x);
}

struct Jsd {
  static constexpr DivergenceTraits kTraits = traits_of(DivergenceKind::kJsd);

  // Returns log2 sum_c 2^(logits_c - max) in units of log2, and `max`, the largest logit: a common
  // offset of all of them is gone before it could cost digits.
  template <class Team, class T>
  MCR_FN static typename Team::Scalar prepare(int64_t steps, CleanRow<T> clean,
                                              typename Team::Scalar& max) {
    constexpr int W = kWidth<T>;
    const T unit = clean.unit;
    Vec<T> top = load(clean.logits), not_finite = {};
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      const Vec<T> z = load(clean.logits + n * W);
      top = vmax(z, top);
      not_finite += poison(z);
    }
    max = Team::reduce_max(top);
    Vec<T> total = {};
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) total += exp2((load(clean.logits + n * W) - max) * unit);
    const auto lse = Team::scalar_log2(Team::reduce_sum(total)) + Team::reduce_sum(not_finite);
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      const Vec<T> log2p = (load(clean.logits + n * W) - max) * unit - lse;
      store(clean.log2p + n * W, log2p);
      store(clean.p + n * W, exp2(log2p));
    }
    return lse;
  }

  // Four sums side by side: one alone would wait for its own addition.
  template <class T, class Row>
  MCR_FN static Vec<T> sum_powers(int64_t steps, const Row& row) {
    Vec<T> a = {}, b = {}, c = {}, d = {};
    int64_t n = 0;
    for (; n + 4 <= steps; n += 4) {
      a += row.power(n);
      b += row.power(n + 1);
      c += row.power(n + 2);
      d += row.power(n + 3);
    }
    for (; n < steps; ++n) a += row.power(n);
    return (a + b) + (c + d);
  }

  // First pass: the mass sum_c p 2^delta with delta = w - z, up to the power of two whose log2 is
  // returned. Rows go through the two passes in groups, so that the sum and logarithm between them
  // are not waited for. `row` reads the perturbed row: difference(n) is delta, logit(n) is w less
  // the clean row's normaliser, so that p 2^delta is 2^logit; and, if it has them as products of
  // stored powers, power(n) is 2^w up to the factor 2^log2_factor(). To read those again in the
  // second pass costs less than to keep them. Otherwise, and where the powers leave their range,
  // the tiles keep delta and p 2^delta: `stored`.
  template <class Team, class T, class Row>
  MCR_FN static typename Team::Scalar first_pass(int64_t steps, const Row& row, StoredRow<T> tiles,
                                                 typename Team::Scalar& total, bool& stored) {
    constexpr int W = kWidth<T>;
    Vec<T> mass = {};
    stored = !Row::kHasPowers;
    if constexpr (Row::kHasPowers) {
      mass = sum_powers<T>(steps, row);
    } else {
      Vec<T> squares = {};
      MCR_UNROLL
      for (int64_t n = 0; n < steps; ++n) {
        const Vec<T> d = row.difference(n), e = exp2(row.logit(n));
        store(tiles.delta + n * W, d);
        store(tiles.q + n * W, e);
        mass += e;
        if constexpr (Row::kMayOverflow) squares += d * d;
      }
      if constexpr (Row::kMayOverflow) mass += poison(squares);
    }
    total = Team::reduce_sum(mass);
    if (__builtin_expect(Team::all_between(total, T(1e-18), T(1e18)), 1)) {
      if constexpr (Row::kHasPowers) return row.log2_factor();
      return typename Team::Scalar{};
    }
    stored = true;
    typename Team::Scalar sum;  // its address, and the row's, are not to be known in this loop
    const auto shift = rescale<Team, T>(steps, row, tiles, sum);
    total = sum;
    return shift;
  }

  // Far logits only: neither the clean row's normaliser nor the stored powers keep 2^delta in
  // range. settled() is the row again, as it reads where that is so.
  template <class Team, class T, class Row>
  MCR_NOINLINE static typename Team::Scalar rescale(int64_t steps, Row given, StoredRow<T> tiles,
                                                    typename Team::Scalar& total) {
    constexpr int W = kWidth<T>;
    const auto& row = given.settled(steps);
    Vec<T> top = row.logit(0);
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      const Vec<T> logit = row.logit(n);
      store(tiles.delta + n * W, row.difference(n));
      store(tiles.q + n * W, logit);
      top = vmax(logit, top);
    }
    const auto max = Team::reduce_max(top);
    Vec<T> mass = {};
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      const Vec<T> e = exp2(load(tiles.q + n * W) - max);
      store(tiles.q + n * W, e);
      mass += e;
    }
    total = Team::reduce_sum(mass);
    return max;
  }

  // The sum of the terms, over ln2 / 2, and where wanted log2(q / m) and the two KL sums.
  template <class T>
  struct Terms {
    Vec<T> value, kl_q;
  };

  // One exponential and one logarithm a class: exact for rows however near.
  template <bool kGrad, bool kBothLogs, class T, class Row, class Scalar>
  MCR_NOINLINE static Terms<T> near_terms(int64_t steps, CleanRow<T> clean, Row row, Scalar scale,
                                          Scalar log2_total, T* log2_qm) {
    constexpr int W = kWidth<T>;
    Vec<T> value = {}, kl_q = {};
    // The exponential of the next step runs beside the logarithm of this one: the chain of both is
    // longer than what a core keeps in flight.
    Ratio<Vec<T>> next(row.difference(0) - log2_total);
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      const Ratio<Vec<T>> ratio = next;
      next = Ratio<Vec<T>>(row.difference(n + 1 < steps ? n + 1 : n) - log2_total);
      const Vec<T> q = row.power(n) * scale, p = load(clean.p + n * W);
      Vec<T> qm, pm;
      value += jsd_term<kGrad>(ratio, p, q, qm, pm);
      if (kGrad) {
        kl_q += q * qm;
        store(log2_qm + n * W, qm);
        if (kBothLogs) store(log2_qm + (steps + n) * W, pm);
      }
    }
    return {value, kl_q};
  }

  // Without the exponential: t as a quotient of p and q. That is off by a rounding where d is not,
  // and the term notices in first order: only for rows that are some way apart.
  template <bool kGrad, bool kBothLogs, class T, class Row, class Scalar>
  MCR_NOINLINE static Terms<T> far_terms(int64_t steps, CleanRow<T> clean, Row row, Scalar scale,
                                         Scalar log2_total, T* log2_qm) {
    constexpr int W = kWidth<T>;
    Vec<T> kl_p = {}, kl_q = {};
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      const Vec<T> d = row.difference(n) - log2_total;
      const Vec<T> q = row.power(n) * scale, p = load(clean.p + n * W);
      const Vec<T> low = vmin(p, q), h = log2_mean_over_max(low, vmax(p, q));
      const Vec<T> qm = vmin(d, Vec<T>{}) - h, pm = -vmax(d, Vec<T>{}) - h;
      kl_q += q * qm;
      kl_p += p * pm;
      if (kGrad) store(log2_qm + n * W, qm);
      if (kGrad && kBothLogs) store(log2_qm + (steps + n) * W, pm);
    }
    return {kl_p + kl_q, kl_q};
  }

  // Second pass: the value. With kGrad, sink(n, u) takes the gradient to w, and acc collects what
  // clean_grad needs; both carry the weight. `row`: the first pass's or, where that
  // filled the tiles, those. `mean_q`: KL(q | m) over ln2. `near`: how the pair before came out,
  // from false; a guess that costs time where it is wrong. `logs`: a tile, or where the team keeps
  // both logarithms and does not make the other one again, two of them.
  template <class Team, bool kGrad, class T, class Row, class Sink>
  MCR_FN static typename Team::Scalar second_pass(
      int64_t steps, CleanRow<T> clean, const Row& row, typename Team::Scalar total,
      typename Team::Scalar log2_total, typename Team::Keep kept, typename Team::Scalar weight,
      T* logs, T* acc, typename Team::Scalar& mean_q, bool& near, Sink sink) {
    constexpr int W = kWidth<T>;
    constexpr bool kBoth = Team::kTilesAreMemory;
    const auto scale = T(1) / total;
    Terms<T> sum = {};
    typename Team::Scalar value = {};
    if constexpr (Team::kFarTerms) {
      if (!near) {
        sum = far_terms<kGrad, kBoth>(steps, clean, row, scale, log2_total, logs);
        value = Team::reduce_sum(sum.value);
        near = Team::any_below(kept, value, T(kFarJsd));
      }
    } else {
      near = true;
    }
    if (near) {
      sum = near_terms<kGrad, kBoth>(steps, clean, row, scale, log2_total, logs);
      value = Team::reduce_sum(sum.value);
      if constexpr (Team::kFarTerms) near = Team::any_below(kept, value, T(kFarJsd));
    }
    if (kGrad) {
      mean_q = Team::reduce_sum(sum.kl_q);
      const auto q_scale = weight * T(kHalfLn2) * scale;
      MCR_UNROLL
      for (int64_t n = 0; n < steps; ++n) {
        const Vec<T> qm = load(logs + n * W);
        Vec<T> pm;
        if constexpr (kBoth) {
          pm = load(logs + (steps + n) * W);
        } else {
          pm = qm - within_sight(row.difference(n) - log2_total);
        }
        store(acc + n * W, load(acc + n * W) + Team::keep(kept, weight * pm));
        sink(n, Team::keep(kept, q_scale * row.power(n) * (qm - mean_q)));
      }
    }
    return not_negative(value) * T(kHalfLn2);
  }

  // dD/dw again, from what the two passes left: log2 p of the class, w less the clean row's
  // normaliser, w - z, the log2 of the mass.
  template <class V, class S>
  MCR_FN static V perturbed_grad(V, V logit, V difference, S log2_total, S mean_q) {
    using T = typename ElementOf<V>::type;
    const Ratio<V> ratio(difference - log2_total);
    const V qm = vmin(ratio.d, V{}) - log2_half1p(ratio.tm1);
    return exp2(logit - log2_total) * (qm - mean_q) * T(kHalfLn2);
  }
  // What it takes of a clean row.
  template <class T>
  MCR_FN static const T* clean_part(CleanRow<T> clean) {
    return clean.log2p;
  }

  // The weighted KL(p | m) over ln2 of all pairs, which clean_grad takes.
  template <class Team, class T>
  MCR_FN static typename Team::Scalar clean_kl(int64_t steps, CleanRow<T> clean, const T* acc) {
    constexpr int W = kWidth<T>;
    Vec<T> sum = {};
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) sum += load(clean.p + n * W) * load(acc + n * W);
    return Team::reduce_sum(sum);
  }
  // What clean_grad takes of a clean row's step.
  template <class T>
  MCR_FN static Vec<T> of_clean(CleanRow<T> clean, int64_t n) {
    return load(clean.p + n * kWidth<T>);
  }
  template <class V, class S>
  MCR_FN static V clean_grad(V p, V acc, S clean_kl) {
    using T = typename ElementOf<V>::type;
    return p * (acc - clean_kl) * T(kHalfLn2);
  }
};

}  // namespace MCR_ISA
}  // namespace mcr
