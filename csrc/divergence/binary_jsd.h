#pragma once

#include "divergence/jsd.h"

namespace mcr {
namespace MCR_ISA {

// Per class the JSD of Bernoulli(sigmoid(z)) and Bernoulli(sigmoid(w)): the two outcomes take the
// place of the classes above.
struct BinaryJsd : InOnePass {
  static constexpr DivergenceTraits kTraits = traits_of(DivergenceKind::kBinaryJsd);

  // sigmoid(x) and 1 - sigmoid(x), neither from the other, and log2((1 + 2^-|x|) / 2), for x in
  // log2 units. log2 sigmoid(x) is min(x, 0) - 1 less the last of them.
  template <class V>
  MCR_INLINE static V logistic(V x, V& on, V& off) {
    using T = typename ElementOf<V>::type;
    V tm1;
    const V t = exp2_and_m1(minus_abs(x), tm1);
    const V larger = T(1) / (T(1) + t), smaller = t * larger;
    on = x > T(0) ? larger : smaller;
    off = x > T(0) ? smaller : larger;
    return log2_half1p(tm1);
  }

  template <class Team, class T>
  MCR_FN static typename Team::Scalar prepare(int64_t steps, CleanRow<T> clean,
                                              typename Team::Scalar& top) {
    constexpr int W = kWidth<T>;
    top = typename Team::Scalar{};
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      const Vec<T> z = of_clean(clean, n);
      Vec<T> on, off;
      store(clean.log2p + n * W, logistic(z, on, off) + poison(z));
      if constexpr (Team::kTilesAreMemory) {
        store(clean.outcomes + n * W, on);
        store(clean.outcomes + (steps + n) * W, off);
      }
    }
    return typename Team::Scalar{};
  }

  template <class Team, bool kGrad, class T, class Row, class Sink>
  MCR_FN static typename Team::Scalar second_pass(int64_t steps, CleanRow<T> clean, const Row& row,
                                                  typename Team::Scalar, typename Team::Scalar,
                                                  typename Team::Keep kept,
                                                  typename Team::Scalar weight, T*, T* acc,
                                                  typename Team::Scalar&, bool&, Sink sink) {
    constexpr int W = kWidth<T>;
    Vec<T> value = {};
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      const Vec<T> z = of_clean(clean, n);
      Vec<T> on, off, half, pm, u;
      if constexpr (Team::kTilesAreMemory) {
        on = load(clean.outcomes + n * W);
        off = load(clean.outcomes + (steps + n) * W);
        half = load(clean.log2p + n * W);
      } else {
        half = logistic(z, on, off) + poison(z);
        // made again without gradient, where there is less to do and no register for it
        if constexpr (kGrad) half = load(clean.log2p + n * W);
      }
      const Vec<T> term = outcomes<kGrad>(z, on, off, half, row.logit(n), row.difference(n), pm, u);
      value += term;
      if (kGrad) {
        store(acc + n * W, load(acc + n * W) + Team::keep(kept, weight * pm));
        sink(n, Team::keep(kept, weight * u * T(kHalfLn2)));
      }
    }
    return not_negative(Team::reduce_sum(value)) * T(kHalfLn2);
  }

  // The terms of both outcomes of w and of z, what logistic() says of z and w - z = `step`, which
  // has digits of its own; with kGrad also the gradients, over ln2 / 2: to z over p (1 - p), and to
  // w.
  template <bool kGrad, class V>
  MCR_INLINE static V outcomes(V z, V p_on, V p_off, V half, V w, V step, V& to_clean,
                               V& to_perturbed) {
    const V zero = {};
    V q_on, q_off, qm_on, pm_on, qm_off, pm_off;
    const V change = logistic(w, q_on, q_off) - half;
    // Between logits of one sign the log of the rarer outcome changes by the step, that of the
    // other one by nothing: neither comes from the other, which would be a difference of masks.
    const V on = vmax(z, w) < zero ? step : vmin(w, zero) - vmin(z, zero);
    const V off = vmin(z, w) > zero ? -step : vmax(z, zero) - vmax(w, zero);
    V term = jsd_term<kGrad>(Ratio<V>(on - change), p_on, q_on, qm_on, pm_on);
    term += jsd_term<kGrad>(Ratio<V>(off - change), p_off, q_off, qm_off, pm_off);
    if (kGrad) {
      to_clean = pm_on - pm_off;
      to_perturbed = q_on * q_off * (qm_on - qm_off);
    }
    return term;
  }

  // dD/dw of a class, from its logits and w - z.
  template <class V, class S>
  MCR_FN static V perturbed_grad(V z, V w, V difference, S, S) {
    using T = typename ElementOf<V>::type;
    V on, off, to_clean, to_perturbed;
    const V half = logistic(z, on, off) + poison(z);
    outcomes<true>(z, on, off, half, w, difference, to_clean, to_perturbed);
    return to_perturbed * T(kHalfLn2);
  }
  template <class T>
  MCR_FN static Vec<T> of_clean(CleanRow<T> clean, int64_t n) {
    return load(clean.logits + n * kWidth<T>) * clean.unit;
  }
  template <class V, class S>
  MCR_FN static V clean_grad(V z, V acc, S) {
    using T = typename ElementOf<V>::type;
    V on, off;
    logistic(z, on, off);
    return on * off * acc * T(kHalfLn2);
  }
};

}  // namespace MCR_ISA
}  // namespace mcr
