// row_divergence where a team holds all perturbed rows of one clean row against it, one after the
// other: what a team of a GPU runs. (The CPU takes them in groups: row_divergence.h.)
#pragma once

#include "divergence.h"
#include "row_divergence_problem.h"

namespace mcr {
namespace MCR_ISA {

// Tiles of a clean row, each of steps * kWidth<T> numbers.
template <class T>
struct HeldTiles {
  static constexpr int kCount = 7;
  CleanRow<T> clean;
  T *acc, *logs;
  StoredRow<T> pair;

  MCR_FN HeldTiles(T* base, int64_t size)
      : clean{base, base + size, base + 2 * size},
        acc(base + 3 * size),
        logs(base + 4 * size),
        pair{base + 5 * size, base + 6 * size} {}
};

// Clean row i with its perturbed rows: their weighted divergences and the weights are added to
// `value` and `weight`; `memory` holds HeldTiles<T>::kCount tiles.
template <class Team, class D, bool kGrad, class T>
MCR_FN void hold_rows(const RowDivergenceProblem<T>& pr, int64_t i, int64_t steps, T* memory,
                      double& value, double& weights) {
  constexpr int W = kWidth<T>;
  const HeldTiles<T> tile(memory, steps * W);
  const int64_t C = pr.classes;
  const T unit = SameType<D, SquaredError>::value ? T(1) : T(kLog2e);
  const T fill = SameType<D, Jsd>::value ? T(-1e30) : T(0);  // the padding is no class
  MCR_UNROLL
  for (int64_t n = 0; n < steps; ++n) {
    store(tile.clean.logits + n * W, Team::load_step(pr.clean + i * C, n, C, fill) * unit);
    store(tile.acc + n * W, Vec<T>{});
  }
  const auto lse = D::template prepare<Team>(steps, tile.clean);
  typename Team::Scalar acc_kl = {};
  [[maybe_unused]] bool any = false;
  for (int64_t at = pr.start[i]; at < pr.start[i + 1]; ++at) {
    const int64_t r = pr.members[at];
    const T own_weight = pr.row_weight ? pr.row_weight[r] : T(1), weight = pr.factor * own_weight;
    weights += double(own_weight);
    T* grad = pr.grad_perturbed + r * C;
    if (own_weight == T(0)) {  // dropped, whatever it holds
      MCR_UNROLL
      for (int64_t n = 0; n < steps; ++n) {
        if (kGrad) Team::store_step(grad, n, C, Vec<T>{});
      }
      continue;
    }
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      // Where there is no class, both are the padding: the rows do not differ.
      const Vec<T> w = Team::load_step(pr.perturbed + r * C, n, C, fill) * unit;
      const Vec<T> z = load(tile.clean.logits + n * W);
      store(tile.pair.delta + n * W, w - z);
    }
    typename Team::Scalar total = {}, mean_q = {};
    bool stored, near = false;
    const auto shift = D::template first_pass<Team, T>(steps, tile.clean, lse, tile.pair, tile.pair,
                                                       total, stored);
    const auto sink = [&](int64_t n, Vec<T> u) { Team::store_step(grad, n, C, u); };
    value +=
        double(weight * D::template second_pass<Team, kGrad, T>(
                            steps, tile.clean, tile.pair, total, shift + Team::scalar_log2(total),
                            {}, weight, tile.logs, tile.acc, acc_kl, mean_q, near, sink));
    any = true;
  }
  if constexpr (kGrad) {
    if (!any) return;  // its gradient is 0 already, whatever the row holds
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      const Vec<T> v = D::clean_grad(load(tile.clean.logits + n * W), load(tile.clean.p + n * W),
                                     load(tile.acc + n * W), acc_kl);
      Team::store_step(pr.grad_clean + i * C, n, C, v);
    }
  }
}

}  // namespace MCR_ISA
}  // namespace mcr
