#pragma once

#include "divergence/rows.h"

namespace mcr {
namespace MCR_ISA {

// (z - w)^2 per class, for regression.
struct SquaredError : InOnePass {
  static constexpr DivergenceTraits kTraits = traits_of(DivergenceKind::kSquaredError);

  template <class Team, class T>
  MCR_FN static typename Team::Scalar prepare(int64_t steps, CleanRow<T> clean,
                                              typename Team::Scalar& top) {
    constexpr int W = kWidth<T>;
    top = typename Team::Scalar{};
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      store(clean.log2p + n * W, poison(load(clean.logits + n * W)));
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
      const Vec<T> raw = row.difference(n);
      const Vec<T> step = raw + poison(raw) + load(clean.log2p + n * W);
      value += step * step;
      if (kGrad) {
        const Vec<T> u = Team::keep(kept, weight * (T(2) * step));
        store(acc + n * W, load(acc + n * W) - u);
        sink(n, u);
      }
    }
    return Team::reduce_sum(value);
  }

  template <class V, class S>
  MCR_FN static V perturbed_grad(V z, V, V difference, S, S) {
    using T = typename ElementOf<V>::type;
    return T(2) * (difference + poison(difference) + poison(z));
  }
  template <class T>
  MCR_FN static Vec<T> of_clean(CleanRow<T> clean, int64_t n) {
    return load(clean.logits + n * kWidth<T>);
  }
  template <class V, class S>
  MCR_FN static V clean_grad(V, V acc, S) {
    return acc;
  }
};

}  // namespace MCR_ISA
}  // namespace mcr
