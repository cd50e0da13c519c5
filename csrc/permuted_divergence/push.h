// D_S for every subset S over all its (row, donor) pairs, and the routed gradient to contributions
// and bias in the same pass (spec: L_MIPD, Eq. 8; routing, Eq. 12-13).
//
//     w(S, i, j) = z_i + sum_{m in S} (A_m[j] - A_m[i]),     z_i = sum_m A_m[i] + b
//     u = dD_S/dw, v = dD_S/dz:   dA_m[j] += u for m in S,   dA_m[i] += k u for m not in S,
//                                 dA_m[i] += c(S, m) v
//
// Rows are numbered by position: the cyclic scheme's order is applied once before and once after,
// so that its donors are position + shift and a block of lanes reads and writes them contiguously.
#pragma once

#include "divergence/divergence.h"
#include "permuted_divergence/push_rows.h"

namespace mcr {
namespace MCR_ISA {

template <class Team, bool kGather, class D>
constexpr bool kUsesPowers = D::kTraits.softmax && !kGather;

// Tiles of one block in a part's scratch memory, each of steps * kWidth<T> numbers.
template <class T>
struct Scratch {
  CleanRow<T> clean;
  T *own, *rest, *rest_powers, *acc, *u_sum, *logs, *donors, *group;
  int64_t tile;

  Scratch(T* base, int64_t size)
      : clean{base, base + size, base + 2 * size, T(1), base + 8 * size},
        own(base + 3 * size),
        rest(base + 4 * size),
        rest_powers(base + 5 * size),
        acc(base + 6 * size),
        u_sum(base + 7 * size),
        logs(base + 8 * size),  // of the softmax, which has no outcomes
        donors(base + 10 * size),
        group(base + 11 * size),
        tile(size) {}
  StoredRow<T> stored(int g) const { return {group + 2 * g * tile, group + (2 * g + 1) * tile}; }
};

// Adds the block's gradients that do not go to donors: k u and c v at its own rows, and the bias.
// A row whose pairs are all dropped gets nothing, whatever it holds.
template <class T, class Team, bool kGather, class D>
void add_own_rows(const PermutedDivergenceProblem<T>& pr, const Block<T, Team, kGather>& block,
                  int s, const Scratch<T>& tile, typename Team::Keep seen, T* grad_bias) {
  constexpr int W = kWidth<T>;
  const auto clean_kl = D::template clean_kl<Team>(pr.steps, tile.clean, tile.acc);
  const uint32_t subset = pr.subsets[s];
  for (int64_t n = 0; n < pr.steps; ++n) {
    const Vec<T> v = Team::keep(
        seen, D::clean_grad(D::of_clean(tile.clean, n), load(tile.acc + n * W), clean_kl));
    store(tile.acc + n * W, v);
    const Vec<T> shared = T(pr.head(s)) * load(tile.u_sum + n * W) + T(pr.clean_head(s)) * v;
    store(grad_bias + n * W, load(grad_bias + n * W) + shared);
  }
  for (int m = 0; m < pr.modalities; ++m) {
    const T route = subset >> m & 1 ? T(0) : T(pr.outsider);
    const T clean = T(pr.clean_route(s, m));
    if (route == T(0) && clean == T(0)) continue;
    for (int64_t n = 0; n < pr.steps; ++n) {
      store(tile.own + n * W, route * load(tile.u_sum + n * W) + clean * load(tile.acc + n * W));
    }
    block.rows(m).add_tile(tile.own, pr.steps);
  }
}

// tile = bias
template <class T, class Team, bool kGather>
void load_bias(const PermutedDivergenceProblem<T>& pr, T* tile) {
  constexpr int W = kWidth<T>;
  for (int64_t n = 0; n < pr.steps; ++n) {
    store(tile + n * W, Team::kRows > 1 ? splat(pr.bias[n]) : load(pr.bias + n * W));
  }
}

// own = sum over the members of A_m[i]; rest = what is not taken from donors, less the clean row's
// normaliser: z less `own` would not tell it where a member holds a mask. rest_powers = 2^rest up
// to the power of two that is returned. Clears what the pairs add to.
template <class T, class Team, bool kGather, class D>
typename Team::Scalar start_subset(const PermutedDivergenceProblem<T>& pr,
                                   const Block<T, Team, kGather>& block, uint32_t subset,
                                   const Scratch<T>& tile, typename Team::Scalar normaliser) {
  constexpr int W = kWidth<T>;
  for (int64_t i = 0; i < tile.tile; i += W) {
    store(tile.own + i, Vec<T>{});
    store(tile.acc + i, Vec<T>{});
    store(tile.u_sum + i, Vec<T>{});
  }
  constexpr bool kNeedsRest = D::kTraits.log2();
  if (kNeedsRest) load_bias<T, Team, kGather>(pr, tile.rest);
  for (int m = 0; m < pr.modalities; ++m) {
    const bool member = subset >> m & 1;
    if (member || kNeedsRest) block.rows(m).add_to(member ? tile.own : tile.rest, pr.steps);
  }
  if constexpr (!kNeedsRest) return typename Team::Scalar{};
  Vec<T> top = load(tile.rest) - normaliser;
  for (int64_t n = 0; n < pr.steps; ++n) {
    const Vec<T> rest = load(tile.rest + n * W) - normaliser;
    store(tile.rest + n * W, rest);
    top = vmax(rest, top);
  }
  if constexpr (!kUsesPowers<Team, kGather, D>) return typename Team::Scalar{};
  const auto max = Team::reduce_max(top);
  for (int64_t n = 0; n < pr.steps; ++n) {
    store(tile.rest_powers + n * W, exp2(load(tile.rest + n * W) - max));
  }
  return max;
}

// The perturbed row as both passes read it; kMembers: of its subset, 0 for any number. 2^w is a
// product of stored powers, except for gathered donors: their contributions are summed in a tile.
template <class T, class Team, bool kGather, class D, int kMembers>
struct PerturbedRow {
  static constexpr bool kHasPowers = kUsesPowers<Team, kGather, D>, kMayOverflow = false;
  const Pairs<T, Team, kGather>& pairs;
  const Walk<T, kGather> first;
  const T *own, *rest, *rest_powers, *donors;
  typename Team::Scalar rest_max;

  int members() const { return kMembers ? kMembers : pairs.members; }
  Vec<T> from_donors(int64_t n) const {
    if constexpr (kGather) return load(donors + n * kWidth<T>);
    Vec<T> sum = first.read(n);
    for (int i = 1; i < members(); ++i) sum += pairs.donors[i].read(n);
    return sum;
  }
  Vec<T> difference(int64_t n) const { return from_donors(n) - load(own + n * kWidth<T>); }
  Vec<T> logit(int64_t n) const { return from_donors(n) + load(rest + n * kWidth<T>); }
  Vec<T> power(int64_t n) const {
    Vec<T> product = load(rest_powers + n * kWidth<T>) * first.power(n);
    for (int i = 1; i < members(); ++i) product *= pairs.donors[i].power(n);
    return product;
  }
  typename Team::Scalar log2_factor() const { return rest_max; }
  const PerturbedRow& settled(int64_t) const { return *this; }
};

// tile.donors = the sum of a pair's donors
template <class T, class Team, bool kGather>
MCR_INLINE void gather_donors(const Pairs<T, Team, kGather>& now, int64_t steps,
                              const Scratch<T>& tile) {
  for (int64_t i = 0; i < tile.tile; i += kWidth<T>) store(tile.donors + i, Vec<T>{});
  for (int i = 0; i < now.members; ++i) now.donors[i].add_to(tile.donors, steps);
}

template <class T, class Team, bool kGather, class D, bool kGrad, int kMembers>
void run_subset(const PermutedDivergenceProblem<T>& pr, const Block<T, Team, kGather>& block, int s,
                const Scratch<T>& tile, typename Team::Scalar normaliser,
                PermutedDivergencePart<T>& part) {
  constexpr int W = kWidth<T>;
  using Scalar = typename Team::Scalar;
  Pairs<T, Team, kGather> pairs[kGroup];
  Scalar total[kGroup] = {}, shift[kGroup], log2_total[kGroup], mean_q = {};
  bool stored[kGroup], near = false;
  typename Team::Keep seen = {};
  bool any = false;
  const auto rest_max =
      start_subset<T, Team, kGather, D>(pr, block, pr.subsets[s], tile, normaliser);
  const auto row_of = [&](const Pairs<T, Team, kGather>& now) {
    return PerturbedRow<T, Team, kGather, D, kMembers>{
        now, now.donors[0], tile.own, tile.rest, tile.rest_powers, tile.donors, rest_max};
  };
  for (int64_t k = 0; k < pr.permutations;) {
    int group = 0;
    for (; group < pr.group && k < pr.permutations; ++k) {
      if (!block.pair_up(pr.subsets[s], k, pr.factors[s], pairs[group])) continue;
      if (kGather) gather_donors(pairs[group], pr.steps, tile);
      shift[group] = D::template first_pass<Team, T>(
          pr.steps, row_of(pairs[group]), tile.stored(group), total[group], stored[group]);
      ++group;
    }
    Team::group_log2(total, log2_total);
    Scalar value = {};
    for (int g = 0; g < group; ++g) {
      const Pairs<T, Team, kGather>& now = pairs[g];
      const auto sink = [&](int64_t n, Vec<T> u) {
        store(tile.u_sum + n * W, load(tile.u_sum + n * W) + u);
        if (kGather) return store(tile.donors + n * W, u);  // whose step n has been read
        now.donors[0].add(n, u);
        for (int i = 1; i < (kMembers ? kMembers : now.members); ++i) now.donors[i].add(n, u);
      };
      const auto second_pass = [&](const auto& row) {
        return D::template second_pass<Team, kGrad, T>(
            pr.steps, tile.clean, row, total[g], shift[g] + log2_total[g], now.kept, now.weight,
            tile.logs, tile.acc, mean_q, near, sink);
      };
      if (kGather && !D::kTraits.softmax) gather_donors(now, pr.steps, tile);
      const Scalar row = with_row<D>(row_of(now), tile.stored(g), stored[g], second_pass);
      for (int i = 0; kGather && kGrad && i < now.members; ++i) {
        now.donors[i].add_tile(tile.donors, pr.steps);
      }
      value += Team::keep(now.kept, now.weight * row);
      Team::note(seen, now.kept);
      any = true;
    }
    part.values[s] += Team::total(value);
  }
  if (kGrad && any) {
    add_own_rows<T, Team, kGather, D>(pr, block, s, tile, seen, part.grad_bias);
  }
}

// Subset by subset, so that only the members' rows compete for the cache; the clean rows are made
// again for each, which costs a K-th of the work.
template <class T, class Team, bool kGather, class D, bool kGrad>
void run_blocks(const PermutedDivergenceProblem<T>& pr, int64_t begin, int64_t end,
                PermutedDivergencePart<T>& part) {
  const Scratch<T> tile(part.scratch, pr.steps * kWidth<T>);
  for (int s = 0; s < pr.num_subsets; ++s) {
    for (int64_t b = begin; b < end; ++b) {
      const Block<T, Team, kGather> block(pr, part.grad, b);
      load_bias<T, Team, kGather>(pr, tile.clean.logits);
      for (int m = 0; m < pr.modalities; ++m) block.rows(m).add_to(tile.clean.logits, pr.steps);
      typename Team::Scalar top;
      const auto lse = D::template prepare<Team>(pr.steps, tile.clean, top);
      if (__builtin_popcount(pr.subsets[s]) == 1) {
        run_subset<T, Team, kGather, D, kGrad, 1>(pr, block, s, tile, top + lse, part);
      } else {
        run_subset<T, Team, kGather, D, kGrad, 0>(pr, block, s, tile, top + lse, part);
      }
    }
  }
}

// The softmax's rows, `from` problem.contributions as they are given: less their largest and in
// units of log2, and where wanted their powers. The softmax does not feel what all classes of a
// contribution have in common, and gone it costs no digits. Row team: rows [begin, end) of all
// M * N. Lane teams: vectors of rows [begin, end), of the step_stride / kWidth in each modality,
// one modality after the other.
template <class T>
void center_rows(const PermutedDivergenceProblem<T>& pr, int64_t begin, int64_t end, T* rows,
                 T* powers) {
  constexpr int W = kWidth<T>;
  const bool lanes = pr.team != TeamKind::kRow;
  const int64_t blocks = lanes ? pr.step_stride / W : pr.rows;
  for (int64_t b = begin; b < end; ++b) {
    const int64_t m = b / blocks, first = b % blocks;
    const int64_t at = m * pr.modality_stride + first * (lanes ? W : pr.row_stride);
    const int64_t stride = pr.step_stride;
    Vec<T> top = load(rows + at);
    for (int64_t n = 1; n < pr.steps; ++n) top = vmax(load(rows + at + n * stride), top);
    if (!lanes) top = splat(RowTeam<T>::reduce_max(top));
    for (int64_t n = 0; n < pr.steps; ++n) {
      const Vec<T> x = load(rows + at + n * stride);
      const Vec<T> a = vmax(Vec<T>{} - T(kFarthest), x - top) * T(kLog2e) + poison(x);
      store(rows + at + n * stride, a);
      store(powers + at + n * stride, exp2(a));
    }
  }
}

template <class T, class D, bool kGrad>
void run_team(const PermutedDivergenceProblem<T>& pr, int64_t begin, int64_t end,
              PermutedDivergencePart<T>& part) {
  if constexpr (sizeof(T) == sizeof(float)) {
    if (pr.team == TeamKind::kLanesShifted) {
      return run_blocks<T, LaneTeam<T>, false, D, kGrad>(pr, begin, end, part);
    }
    if (pr.team == TeamKind::kLanesGathered) {
      return run_blocks<T, LaneTeam<T>, true, D, kGrad>(pr, begin, end, part);
    }
  }
  run_blocks<T, RowTeam<T>, false, D, kGrad>(pr, begin, end, part);
}

// Blocks [begin, end) of the problem: rows of a row team, kWidth rows of a lane team.
template <class T>
void permuted_divergence(const PermutedDivergenceProblem<T>& pr, int64_t begin, int64_t end,
                         PermutedDivergencePart<T>& part) {
  with_divergence(pr.divergence, [&](auto divergence) {
    using D = decltype(divergence);
    if (pr.want_grad) {
      run_team<T, D, true>(pr, begin, end, part);
    } else {
      run_team<T, D, false>(pr, begin, end, part);
    }
  });
}

}  // namespace MCR_ISA
}  // namespace mcr
