// permuted_divergence where every row collects its own gradient and writes nobody else's: no
// atomics, no copy of the gradient for each team. (The CPU's threads push to donors instead, each
// into memory of its own: push.h.) Two passes over the pairs:
//
//     rows      row i with all its donors: the value, and the gradient that stays at row i; of each
//               pair it leaves two numbers, the log2 of the mass and KL(q | m)
//     donations row j with all rows that it gives to: from those numbers, du / dA_m[j] class by
//               class, without a reduction
//
// Everything adds to what is there, so that the permutations can come in chunks. In a small batch
// (small.h) several teams share a row's pairs (`parts`) and the first one takes the sums.
#pragma once

#include "divergence/divergence.h"
#include "permuted_divergence/sides_problem.h"

namespace mcr {
namespace MCR_ISA {

// The permutations of a part: as many for each, so that the last ones may end beyond the chunk.
template <class Parts>
struct PartRange {
  int64_t first, last;
  template <class T>
  MCR_FN PartRange(const SidesProblem<T>& pr, const Parts& parts) {
    const int64_t each = (pr.last - pr.first + parts.parts - 1) / parts.parts;
    first = pr.first + parts.part * each;
    last = first + each;
  }
  template <class T>
  MCR_FN int64_t end(const SidesProblem<T>& pr) const {
    return last < pr.last ? last : pr.last;
  }
};

// Tiles of one row, each of steps * kWidth<T> numbers.
template <class T>
struct SideTiles {
  static constexpr int kCount = 10;
  CleanRow<T> clean;
  T *own, *rest, *acc, *u_sum, *logs;
  StoredRow<T> pair;

  MCR_FN SideTiles(T* base, int64_t size)
      : clean{base, base + size, base + 2 * size, T(1)},
        own(base + 3 * size),
        rest(base + 4 * size),
        acc(base + 5 * size),
        u_sum(base + 6 * size),
        logs(base + 7 * size),
        pair{base + 8 * size, base + 9 * size} {}
};

// tile += row
template <class Team, class T>
MCR_FN void add_row(T* tile, int64_t steps, const T* row, int64_t classes) {
  MCR_UNROLL
  for (int64_t n = 0; n < steps; ++n) {
    T* to = tile + n * kWidth<T>;
    store(to, load(to) + Team::load_step(row, n, classes, T(0)));
  }
}

// tile += factor * from
template <class T>
MCR_FN void add_tile(T* tile, int64_t steps, const T* from, T factor) {
  MCR_UNROLL
  for (int64_t n = 0; n < steps; ++n) {
    T* to = tile + n * kWidth<T>;
    store(to, load(to) + factor * load(from + n * kWidth<T>));
  }
}

// row += factor * tile
template <class Team, class T>
MCR_FN void add_to_row(T* row, int64_t classes, const T* tile, int64_t steps, T factor) {
  MCR_UNROLL
  for (int64_t n = 0; n < steps; ++n) {
    const Vec<T> sum = Team::load_step(row, n, classes, T(0)) + factor * load(tile + n * kWidth<T>);
    Team::store_step(row, n, classes, sum);
  }
}

// tile = bias; the padding is no class of the softmax.
template <class Team, class D, class T>
MCR_FN void load_bias(const SidesProblem<T>& pr, int64_t steps, T* tile) {
  const T fill = D::kTraits.softmax ? T(kNoClass) : T(0);
  MCR_UNROLL
  for (int64_t n = 0; n < steps; ++n) {
    store(tile + n * kWidth<T>, Team::load_step(pr.bias, n, pr.classes, fill));
  }
}

// The gradients that stay at row i: k u of the modalities that were not taken, c v of the clean
// path, and the bias. add(row, of_u, factor) adds the sum of u or of v over its pairs.
template <class T, class F>
MCR_FN void route_own_row(const SidesProblem<T>& pr, int s, int64_t i, const F& add) {
  if (pr.grad_bias_rows) {
    T* row = pr.grad_bias_rows + i * pr.classes;
    add(row, true, T(pr.head(s)));
    add(row, false, T(pr.clean_head(s)));
  }
  for (int m = 0; m < pr.modalities; ++m) {
    const int route = pr.subsets[s] >> m & 1 ? 0 : pr.outsider, clean = pr.clean_route(s, m);
    T* row = pr.grad_row(m, i);
    if (route != 0) add(row, true, T(route));
    if (clean != 0) add(row, false, T(clean));
  }
}

// tile.acc = the gradient to the clean row, of what the pairs left there.
template <class Team, class D, class T>
MCR_FN void finish_clean(int64_t steps, const SideTiles<T>& tile) {
  constexpr int W = kWidth<T>;
  const auto clean_kl = D::template clean_kl<Team>(steps, tile.clean, tile.acc);
  MCR_UNROLL
  for (int64_t n = 0; n < steps; ++n) {
    T* acc = tile.acc + n * W;
    store(acc, D::clean_grad(D::of_clean(tile.clean, n), load(acc), clean_kl));
  }
}

// What one pair comes to: its divergence, and of the perturbed row what PairNumbers has.
template <class Scalar>
struct PairValue {
  Scalar value, log2_mass, kl_q;
};

// One pair; with kGrad its gradients are added to the tiles.
template <class Team, class D, bool kGrad, class T>
MCR_FN PairValue<typename Team::Scalar> add_pair(const SidesProblem<T>& pr, int s, int64_t k,
                                                 int64_t i, int64_t steps, const SideTiles<T>& tile,
                                                 T weight) {
  constexpr int W = kWidth<T>;
  const auto add_donors = [&](T* to) {
    for (int m = 0; m < pr.modalities; ++m) {
      if (!(pr.subsets[s] >> m & 1)) continue;
      add_row<Team>(to, steps, pr.row(m, pr.donor(m, k, i)), pr.classes);
    }
  };
  clear(tile.pair.delta, steps);
  add_donors(tile.pair.delta);
  // The members' sums first, in their order: a row that is its own donor does not move at all.
  MCR_UNROLL
  for (int64_t n = 0; n < steps; ++n) {
    const Vec<T> donors = load(tile.pair.delta + n * W);
    store(tile.pair.q + n * W, donors + load(tile.rest + n * W));
    store(tile.pair.delta + n * W, donors - load(tile.own + n * W));
  }
  const auto settle = [&] {
    clear(tile.pair.q, steps);
    add_donors(tile.pair.q);
    add_tile(tile.pair.q, steps, tile.rest, T(1));
  };
  const FilledRow<T, decltype(settle)> filled(tile.pair, settle);
  typename Team::Scalar total = {}, mean_q = {};
  bool stored, near = false;
  const auto shift = D::template first_pass<Team, T>(steps, filled, tile.pair, total, stored);
  const auto log2_total = shift + Team::scalar_log2(total);
  const auto sink = [&](int64_t n, Vec<T> u) {
    store(tile.u_sum + n * W, load(tile.u_sum + n * W) + u);
  };
  const auto value =
      D::template second_pass<Team, kGrad, T>(steps, tile.clean, filled, total, log2_total, {},
                                              weight, tile.logs, tile.acc, mean_q, near, sink);
  return {value, log2_total, mean_q};
}

// The first of the permutations k .. last - 1 whose pair is to be gone through, or `last`;
// receiver(k) is its row. The lanes of a team look at several at once.
template <class Team, class T, class F>
MCR_FN int64_t next_pair(const SidesProblem<T>& pr, int s, int64_t k, int64_t last,
                         const F& receiver) {
  if (!pr.ratios) return k;
  return Team::first_of(
      k, last, [&](int64_t at) { return pr.ratios[pr.pair(s, at, receiver(at))] == T(kLeft); });
}

// The clean row i; returns its normaliser.
template <class Team, class D, class T>
MCR_FN typename Team::Scalar prepare_row(const SidesProblem<T>& pr, int64_t i, int64_t steps,
                                         const SideTiles<T>& tile) {
  load_bias<Team, D>(pr, steps, tile.clean.logits);
  for (int m = 0; m < pr.modalities; ++m) {
    add_row<Team>(tile.clean.logits, steps, pr.row(m, i), pr.classes);
  }
  typename Team::Scalar normaliser;
  const auto lse = D::template prepare<Team>(steps, tile.clean, normaliser);
  normaliser += lse;
  return normaliser;
}

// Row i's members, and the rest of it with the bias, less its normaliser.
template <class Team, class D, class T>
MCR_FN void take_apart(const SidesProblem<T>& pr, uint32_t subset, int64_t i, int64_t steps,
                       typename Team::Scalar normaliser, const SideTiles<T>& tile) {
  constexpr int W = kWidth<T>;
  clear(tile.own, steps);
  load_bias<Team, D>(pr, steps, tile.rest);
  MCR_UNROLL
  for (int64_t n = 0; n < steps; ++n) {
    store(tile.rest + n * W, load(tile.rest + n * W) - normaliser);
  }
  for (int m = 0; m < pr.modalities; ++m) {
    // not one call for either: a chosen tile would have to be memory
    if (subset >> m & 1) {
      add_row<Team>(tile.own, steps, pr.row(m, i), pr.classes);
    } else {
      add_row<Team>(tile.rest, steps, pr.row(m, i), pr.classes);
    }
  }
}

// Row i's pairs of a subset, of all parts to the one that leads: their value, and the tiles' sums.
// False if there is none. With kNotes the numbers of each pair are kept.
template <class Team, class D, bool kGrad, bool kNotes, class T, class Parts>
MCR_FN bool add_pairs(const SidesProblem<T>& pr, int s, int64_t i, int64_t steps, T factor,
                      const SideTiles<T>& tile, const Parts& parts, double& value) {
  const PartRange<Parts> range(pr, parts);
  bool any = false;
  value = 0;
  clear(tile.acc, steps);
  clear(tile.u_sum, steps);
  const int64_t last = parts.live ? range.end(pr) : range.first;
  const auto row = [&](int64_t) { return i; };
  for (int64_t k = range.first; (k = next_pair<Team>(pr, s, k, last, row)) < last; ++k) {
    const T weight = pr.pair_weight(pr.subsets[s], k, i, factor);
    if (weight == T(0)) continue;
    const auto pair = add_pair<Team, D, kGrad>(pr, s, k, i, steps, tile, weight);
    if (kNotes && D::kTraits.softmax && Team::leads()) {
      pr.numbers(s, k, i) = {pair.log2_mass, pair.kl_q};
    }
    value += double(weight * pair.value);
    any = true;
  }
  parts.add(any);
  parts.add(value);
  if (kGrad) {
    parts.add_tile(tile.acc, steps);
    parts.add_tile(tile.u_sum, steps);
  }
  return any;
}

// Row i with its donors under the chunk's permutations; `memory` holds SideTiles<T>::kCount tiles.
template <class Team, class D, bool kGrad, class T>
MCR_FN void own_side_of(const SidesProblem<T>& pr, int64_t i, int64_t steps, T* memory) {
  constexpr int W = kWidth<T>;
  const SideTiles<T> tile(memory, steps * W);
  const auto normaliser = prepare_row<Team, D>(pr, i, steps, tile);
  if (kGrad) {
    if (Team::leads()) pr.clean_lse[i] = normaliser;
    const T* kept = D::clean_part(tile.clean);
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      Team::store_step(pr.clean + i * pr.classes, n, pr.classes, load(kept + n * W));
    }
  }
  for (int s = 0; s < pr.num_subsets; ++s) {
    take_apart<Team, D>(pr, pr.subsets[s], i, steps, normaliser, tile);
    double value;
    const bool any =
        add_pairs<Team, D, kGrad, kGrad>(pr, s, i, steps, pr.factors[s], tile, Whole(), value);
    if (!any) continue;  // nothing is added, whatever the row holds
    if (Team::leads()) pr.row_values[s * pr.rows + i] += value;
    if (!kGrad) continue;
    finish_clean<Team, D>(steps, tile);
    route_own_row(pr, s, i, [&](T* row, bool of_u, T factor) {
      add_to_row<Team>(row, pr.classes, of_u ? tile.u_sum : tile.acc, steps, factor);
    });
  }
}

// Step n of row i's logits with its donors, less the row's normaliser; `mine` is row j's own.
template <class Team, class T>
MCR_NOINLINE Vec<T> direct_logit(const SidesProblem<T>& pr, uint32_t subset, int m, int64_t k,
                                 int64_t i, int64_t n, Vec<T> mine) {
  Vec<T> w = Team::load_step(pr.bias, n, pr.classes, T(0)) - pr.clean_lse[i];
  for (int o = 0; o < pr.modalities; ++o) {
    if (o == m) {
      w += mine;
    } else {
      const int64_t row = subset >> o & 1 ? pr.donor(o, k, i) : i;
      w += Team::load_step(pr.row(o, row), n, pr.classes, T(0));
    }
  }
  return w;
}

// A clean logit further from 0 tells nothing of the perturbed one by their difference.
constexpr double kTellsDifference = 128;

// What row j gets for modality m from the rows that it gives to; `memory` holds 4 tiles.
template <class Team, class D, class T>
MCR_FN void donor_side(const SidesProblem<T>& pr, int m, int64_t j, int64_t steps, T* memory) {
  constexpr int W = kWidth<T>;
  T *mine = memory, *sum = memory + steps * W, *delta = memory + 2 * steps * W;
  T* own = memory + 3 * steps * W;
  clear(mine, steps);
  clear(sum, steps);
  add_row<Team>(mine, steps, pr.row(m, j), pr.classes);
  for (int s = 0; s < pr.num_subsets; ++s) {
    const uint32_t subset = pr.subsets[s];
    if (!(subset >> m & 1)) continue;
    const auto receiver = [&](int64_t k) { return pr.receiver(m, k, j); };
    for (int64_t k = pr.first; (k = next_pair<Team>(pr, s, k, pr.last, receiver)) < pr.last; ++k) {
      const int64_t i = receiver(k);
      const T weight = pr.pair_weight(subset, k, i, pr.factors[s]);
      if (weight == T(0)) continue;
      clear(own, steps);
      clear(delta, steps);
      for (int o = 0; o < pr.modalities; ++o) {
        if (!(subset >> o & 1)) continue;
        add_row<Team>(own, steps, pr.row(o, i), pr.classes);
        if (o == m) {
          add_tile(delta, steps, mine, T(1));
        } else {
          add_row<Team>(delta, steps, pr.row(o, pr.donor(o, k, i)), pr.classes);
        }
      }
      add_tile(delta, steps, own, T(-1));
      T log2_total = 0, mean_q = 0;
      if (D::kTraits.softmax) {
        log2_total = pr.numbers(s, k, i).log2_mass;
        mean_q = pr.numbers(s, k, i).kl_q;
      }
      MCR_UNROLL
      for (int64_t n = 0; n < steps; ++n) {
        const Vec<T> clean = Team::load_step(pr.clean + i * pr.classes, n, pr.classes, T(0));
        Vec<T> w = clean + load(delta + n * W);
        if (D::kTraits.log2() && any(minus_abs(clean) < T(-kTellsDifference))) {
          w = direct_logit<Team>(pr, subset, m, k, i, n, load(mine + n * W));
        }
        const Vec<T> u = D::perturbed_grad(clean, w, load(delta + n * W), log2_total, mean_q);
        store(sum + n * W, load(sum + n * W) + weight * u);
      }
    }
  }
  add_to_row<Team>(pr.grad_row(m, j), pr.classes, sum, steps, T(1));
}

}  // namespace MCR_ISA
}  // namespace mcr
