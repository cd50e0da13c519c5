// Weighted sum of the divergences of perturbed rows w_r from the clean rows z_rows[r], and its
// gradients to both:  dw_r = weight_r dD/dw,  dz_i = sum over the r with rows[r] = i of weight_r
// dD/dz.
//
// The rows come grouped by clean row: what a clean row needs is made once, its gradient is summed
// in one place, and no order of threads shows in the result.
#pragma once

#include "divergence/divergence.h"
#include "row_divergence/problem.h"

namespace mcr {
namespace MCR_ISA {

// A perturbed row as it is given. With kSettled nothing is too far from 0 for the units.
template <class T, bool kSettled>
struct GivenRow {
  static constexpr bool kHasPowers = false, kMayOverflow = !kSettled;
  const T* perturbed;
  const T* logits;  // the clean row's tile
  int64_t classes;
  T unit, top, lse;                // of the clean row
  T past_end;                      // the logits where there is no class
  T own_base = 0, clean_base = 0;  // taken off the rows before their difference

  // f(w, z) of step n, `otherwise` where there is no class
  template <class F>
  Vec<T> map(int64_t n, T otherwise, const F& f) const {
    constexpr int W = kWidth<T>;
    const auto read = [&](Vec<T> w) { return kSettled ? saturated(w, kFarthest) - own_base : w; };
    const Vec<T> z = load(logits + n * W);
    if ((n + 1) * W <= classes) return f(read(load(perturbed + n * W)), z);
    Vec<T> x = f(read(load_step(perturbed, n, classes, T(0))), z);
    for (int l = 0; l < W; ++l) x[l] = n * W + l < classes ? x[l] : otherwise;
    return x;
  }
  // Differences first, units after: a mask as large as numbers go would overflow in units of log2.
  Vec<T> difference(int64_t n) const {
    return map(n, T(0), [&](Vec<T> w, Vec<T> z) { return w - (kSettled ? z - clean_base : z); }) *
           unit;
  }
  Vec<T> logit(int64_t n) const {
    return map(n, past_end,
               [&](Vec<T> w, Vec<T>) { return (kSettled ? w : w - top) * unit - lse; });
  }
  // Each row less its largest: they are so far apart that their common offsets, if they have any,
  // cost more digits than this does.
  GivenRow<T, true> settled(int64_t) const {
    T most = T(-kFarthest);
    for (int64_t c = 0; c < classes; ++c) most = perturbed[c] > most ? perturbed[c] : most;
    most = most > T(kFarthest) ? T(kFarthest) : most;
    return {perturbed, logits, classes, unit, top, lse, past_end, most, top};
  }
};

// The clean row's tile; the padding is no class of the softmax.
template <class T, class D>
void load_clean_row(const RowDivergenceProblem<T>& pr, int64_t i, T past_end, T* tile) {
  constexpr int W = kWidth<T>;
  for (int64_t n = 0; n < pr.steps; ++n) {
    Vec<T> z = load_step(pr.clean + i * pr.classes, n, pr.classes, T(0));
    if constexpr (D::kTraits.log2()) z = saturated(z, kFarthest);
    for (int l = 0; (n + 1) * W > pr.classes && l < W; ++l) {
      z[l] = n * W + l < pr.classes ? z[l] : past_end;
    }
    store(tile + n * W, z);
  }
}

template <class T, class D>
void store_clean_grad(const RowDivergenceProblem<T>& pr, int64_t i, const CleanRow<T>& clean,
                      const T* acc) {
  const T clean_kl = D::template clean_kl<RowTeam<T>>(pr.steps, clean, acc);
  for (int64_t n = 0; n < pr.steps; ++n) {
    const Vec<T> v = D::clean_grad(D::of_clean(clean, n), load(acc + n * kWidth<T>), clean_kl);
    store_step(pr.grad_clean + i * pr.classes, n, pr.classes, v);
  }
}

template <class T, class D, bool kGrad>
void run_clean_row(const RowDivergenceProblem<T>& pr, int64_t i, T* scratch, double& value) {
  constexpr int W = kWidth<T>;
  using Team = RowTeam<T>;
  constexpr bool kSettled = D::kTraits.binary;  // the softmax looks for what needs it
  const T unit = D::kTraits.log2() ? T(kLog2e) : T(1);
  const T past_end = D::kTraits.softmax ? T(kNoClass) : T(0);
  const int64_t tile = pr.steps * W;
  const CleanRow<T> clean{scratch, scratch + tile, scratch + 2 * tile, unit, scratch + 4 * tile};
  T* acc = scratch + 3 * tile;
  T* logs = scratch + 4 * tile;  // of the softmax, which has no outcomes
  const auto tiles = [&](int g) {
    T* base = scratch + (6 + 2 * g) * tile;
    return StoredRow<T>{base, base + tile};
  };
  T top, lse;
  const auto row_of = [&](int64_t r) {
    const T* given = pr.perturbed + r * pr.classes;
    return GivenRow<T, kSettled>{given, clean.logits, pr.classes, unit, top, lse, past_end};
  };
  load_clean_row<T, D>(pr, i, past_end, clean.logits);
  clear(acc, pr.steps);
  lse = D::template prepare<Team>(pr.steps, clean, top);
  T mean_q = 0;
  bool any = false, near = false;
  for (int64_t at = pr.start[i]; at < pr.start[i + 1];) {
    int64_t rows[kGroup];
    T weights[kGroup], total[kGroup] = {}, shift[kGroup], log2_total[kGroup];
    bool stored[kGroup];
    int group = 0;
    for (; group < pr.group && at < pr.start[i + 1]; ++at) {
      const int64_t r = pr.members[at];
      const T weight = pr.row_weight ? pr.factor * pr.row_weight[r] : pr.factor;
      if (weight == T(0)) {  // dropped, whatever it holds
        for (int64_t n = 0; kGrad && n < pr.steps; ++n) {
          store_step(pr.grad_perturbed + r * pr.classes, n, pr.classes, Vec<T>{});
        }
        continue;
      }
      shift[group] = D::template first_pass<Team, T>(pr.steps, row_of(r), tiles(group),
                                                     total[group], stored[group]);
      rows[group] = r;
      weights[group++] = weight;
    }
    any = any || group > 0;
    Team::group_log2(total, log2_total);
    for (int g = 0; g < group; ++g) {
      T* grad = kGrad ? pr.grad_perturbed + rows[g] * pr.classes : nullptr;
      const auto sink = [&](int64_t n, Vec<T> u) { store_step(grad, n, pr.classes, u); };
      const auto second_pass = [&](const auto& row) {
        return D::template second_pass<Team, kGrad, T>(pr.steps, clean, row, total[g],
                                                       shift[g] + log2_total[g], {}, weights[g],
                                                       logs, acc, mean_q, near, sink);
      };
      value += weights[g] * with_row<D>(row_of(rows[g]), tiles(g), stored[g], second_pass);
    }
  }
  // Without a row held against it, its gradient is 0 already, whatever it holds.
  if (kGrad && any) store_clean_grad<T, D>(pr, i, clean, acc);
}

// Clean rows [begin, end) of the problem; scratch: [6 + 2 group, steps * W].
template <class T>
double row_divergence(const RowDivergenceProblem<T>& pr, int64_t begin, int64_t end, T* scratch) {
  return with_divergence(pr.divergence, [&](auto divergence) {
    using D = decltype(divergence);
    double value = 0;
    for (int64_t i = begin; i < end; ++i) {
      if (pr.start[i] == pr.start[i + 1]) continue;  // its gradient is 0 already
      if (pr.want_grad) {
        run_clean_row<T, D, true>(pr, i, scratch, value);
      } else {
        run_clean_row<T, D, false>(pr, i, scratch, value);
      }
    }
    return value;
  });
}

}  // namespace MCR_ISA
}  // namespace mcr
