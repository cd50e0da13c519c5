// row_divergence where a team holds the perturbed rows of one clean row against it, one after the
// other: what a team of a GPU runs. (The CPU takes them in groups: grouped.h.) Where there
// are few clean rows several teams share those of one (`parts`), and the first one takes the sums.
//
// Between a perturbed row and its numbers lie three reads that wait for each other: which row it
// is, its weight, the row. Each is made while the rows before it are worked on.
#pragma once

#include "divergence/divergence.h"
#include "row_divergence/problem.h"

namespace mcr {
namespace MCR_ISA {

// Tiles of a clean row, each of steps * kWidth<T> numbers. With kAhead the next perturbed row has
// one of its own, else it is read when its turn comes.
template <class T, bool kAhead>
struct HeldTiles {
  static constexpr int kCount = 7 + kAhead;
  CleanRow<T> clean;
  T *acc, *logs;
  StoredRow<T> pair;
  T* next;

  MCR_FN HeldTiles(T* base, int64_t size, T unit)
      : clean{base, base + size, base + 2 * size, unit},
        acc(base + 3 * size),
        logs(base + 4 * size),
        pair{base + 5 * size, base + 6 * size},
        next(kAhead ? base + 7 * size : pair.delta) {}

  // The row in `from`, less `base`, beside the clean row less `clean_base`. Where there is no
  // class, both are the padding: the rows do not differ. Differences first, units after: a mask as
  // large as numbers go would overflow in units of log2.
  template <bool kLog2, class S>
  MCR_FN void fill_pair(const T* from, int64_t steps, S base, S clean_base, S top, S lse) const {
    constexpr int W = kWidth<T>;
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      const Vec<T> w = load(from + n * W) - base;
      const Vec<T> difference = w - (load(clean.logits + n * W) - clean_base);
      store(pair.delta + n * W, difference * clean.unit);
      if (kLog2) store(pair.q + n * W, (w - (top - clean_base)) * clean.unit - lse);
    }
  }
};

// A part's rows held against clean row i, `first` to `last` of the members, in turn.
template <class T>
struct Members {
  const RowDivergenceProblem<T>& pr;
  int64_t first, last;

  template <class Parts>
  MCR_FN Members(const RowDivergenceProblem<T>& problem, int64_t i, const Parts& parts)
      : pr(problem), first(pr.start[i]), last(pr.start[i + 1]) {
    const int64_t each = (last - first + parts.parts - 1) / parts.parts;
    first = first + parts.part * each;
    last = !parts.live ? first : first + each < last ? first + each : last;
  }
  // -1 and 0 beyond the last one
  MCR_FN int64_t row(int64_t at) const { return at < last ? pr.members[at] : -1; }
  MCR_FN T weight(int64_t r) const {
    return r < 0 ? T(0) : pr.row_weight ? pr.row_weight[r] : T(1);
  }
};

template <class Team, class T>
MCR_FN typename Team::Scalar largest_of(const T* tile, int64_t steps) {
  Vec<T> most = load(tile);
  MCR_UNROLL
  for (int64_t n = 1; n < steps; ++n) most = vmax(load(tile + n * kWidth<T>), most);
  return Team::reduce_max(most);
}

// The gradient of a row that is dropped, whatever it holds.
template <class Team, class T>
MCR_FN void store_zeros(T* grad, int64_t steps, int64_t classes) {
  MCR_UNROLL
  for (int64_t n = 0; n < steps; ++n) Team::store_step(grad, n, classes, Vec<T>{});
}

// The gradient of a clean row, 0 if none of its rows counts, whatever it holds.
template <class Team, class D, class Tiles, class T, class Parts>
MCR_FN void store_clean_grad(const Tiles& tile, int64_t steps, int64_t classes, bool any, T* grad,
                             const Parts& parts) {
  constexpr int W = kWidth<T>;
  parts.add(any);
  parts.add_tile(tile.acc, steps);
  if (!parts.leads()) return;
  if (!any) return store_zeros<Team>(grad, steps, classes);
  const auto clean_kl = D::template clean_kl<Team>(steps, tile.clean, tile.acc);
  MCR_UNROLL
  for (int64_t n = 0; n < steps; ++n) {
    const Vec<T> v = D::clean_grad(D::of_clean(tile.clean, n), load(tile.acc + n * W), clean_kl);
    Team::store_step(grad, n, classes, v);
  }
}

// Clean row i with its perturbed rows: their weighted divergences and the weights are added to
// `value` and `weights`, which are the sums where parts.leads(). clean(i, ..) and
// perturbed(r, ..) fill a tile with numbers up to a limit; `memory` holds
// HeldTiles<T, kAhead>::kCount tiles.
template <class Team, class D, bool kGrad, bool kAhead, class T, class Rows, class Parts>
MCR_FN void hold_rows(const RowDivergenceProblem<T>& pr, const Rows& perturbed, const Rows& clean,
                      int64_t i, int64_t steps, T* memory, double& value, double& weights,
                      const Parts& parts) {
  constexpr int W = kWidth<T>;
  constexpr bool kLog2 = D::kTraits.log2();
  const HeldTiles<T, kAhead> tile(memory, steps * W, kLog2 ? T(kLog2e) : T(1));
  const int64_t C = pr.classes;
  const T fill = D::kTraits.softmax ? T(kNoClass) : T(0);  // the padding is no class
  const Members<T> members(pr, i, parts);
  const T limit = kLog2 ? T(kFarthest) : T(INFINITY);
  clean(i, steps, fill, limit, tile.clean.logits);
  clear(tile.acc, steps);
  typename Team::Scalar top;
  const auto lse = D::template prepare<Team>(steps, tile.clean, top);
  const auto fill_pair = [&](const T* from, auto base, auto clean_base) {
    tile.template fill_pair<kLog2>(from, steps, base, clean_base, top, lse);
  };
  bool any = false;
  int64_t next = -1, after = members.row(members.first);
  T next_weight = T(0);
  for (int64_t at = members.first - 1; at < members.last; ++at) {  // once before the first one
    const int64_t r = next;
    const T own_weight = next_weight, weight = pr.factor * own_weight;
    if (own_weight != T(0)) {
      if (!kAhead) perturbed(r, steps, fill, limit, tile.next);
      fill_pair(tile.next, T(0), T(0));
    }
    next = after;
    next_weight = members.weight(next);
    after = members.row(at + 2);
    if (kAhead && next_weight != T(0)) perturbed(next, steps, fill, limit, tile.next);
    weights += double(own_weight);
    T* grad = pr.grad_perturbed + r * C;
    if (own_weight == T(0)) {
      if (kGrad && r >= 0) store_zeros<Team>(grad, steps, C);
      continue;
    }
    typename Team::Scalar total = {}, mean_q = {};
    bool stored, near = false;
    // Each row less its largest: they are so far apart that their common offsets, if they have any,
    // cost more digits than this does.
    const auto settle = [&] {
      perturbed(r, steps, fill, limit, tile.pair.q);
      fill_pair(tile.pair.q, largest_of<Team>(tile.pair.q, steps), top);
    };
    const FilledRow<T, decltype(settle)> row(tile.pair, settle);
    const auto shift = D::template first_pass<Team, T>(steps, row, tile.pair, total, stored);
    const auto sink = [&](int64_t n, Vec<T> u) { Team::store_step(grad, n, C, u); };
    value += double(weight * D::template second_pass<Team, kGrad, T>(
                                 steps, tile.clean, row, total, shift + Team::scalar_log2(total),
                                 {}, weight, tile.logs, tile.acc, mean_q, near, sink));
    any = true;
  }
  parts.add(value);
  parts.add(weights);
  if constexpr (kGrad) {
    store_clean_grad<Team, D>(tile, steps, C, any, pr.grad_clean + i * C, parts);
  }
}

}  // namespace MCR_ISA
}  // namespace mcr
