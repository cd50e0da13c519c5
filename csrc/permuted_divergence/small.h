// permuted_divergence of a small batch, where a launch costs more than the arithmetic: a row's
// whole gradient is collected by one team, which makes the pairs of the row and those in which it
// is the donor, each from the start. So no pass has to wait for what another one leaves.
#pragma once

#include "permuted_divergence/sides.h"

namespace mcr {
namespace MCR_ISA {

// What stays at row i, of its own pairs: to `total` for modality m, for the first one also the
// values and what goes to the bias.
template <class Team, class D, bool kGrad, class T, class Parts>
MCR_FN void small_own_side(const SidesProblem<T>& pr, int m, int64_t i, int64_t steps,
                           const SideTiles<T>& tile, T* total, const Parts& parts) {
  const auto normaliser = prepare_row<Team, D>(pr, i, steps, tile);
  T* to_bias = kGrad && m == 0 && pr.grad_bias_rows ? pr.grad_bias_rows + i * pr.classes : nullptr;
  if (to_bias && parts.leads()) {
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) Team::store_step(to_bias, n, pr.classes, Vec<T>{});
  }
  for (int s = 0; s < pr.num_subsets; ++s) {
    take_apart<Team, D>(pr, pr.subsets[s], i, steps, normaliser, tile);
    double value;
    const bool any =
        add_pairs<Team, D, kGrad, false>(pr, s, i, steps, pr.factors[s], tile, parts, value);
    if (!parts.leads()) continue;
    if (Team::leads() && m == 0) pr.row_values[s * pr.rows + i] = any ? value : 0.0;
    if (!kGrad || !any) continue;  // nothing is added, whatever the row holds
    finish_clean<Team, D>(steps, tile);
    const int route = pr.subsets[s] >> m & 1 ? 0 : pr.outsider, clean = pr.clean_route(s, m);
    if (route != 0) add_tile(total, steps, tile.u_sum, T(route));
    if (clean != 0) add_tile(total, steps, tile.acc, T(clean));
    if (!to_bias) continue;
    add_to_row<Team>(to_bias, pr.classes, tile.u_sum, steps, T(pr.head(s)));
    add_to_row<Team>(to_bias, pr.classes, tile.acc, steps, T(pr.clean_head(s)));
  }
}

// tile.u_sum = what row j gets for modality m from the rows that it gives to, in the leading part.
template <class Team, class D, class T, class Parts>
MCR_FN void small_donor_side(const SidesProblem<T>& pr, int m, int64_t j, int64_t steps,
                             const SideTiles<T>& tile, const Parts& parts) {
  const PartRange<Parts> range(pr, parts);
  const int64_t last = parts.live ? range.end(pr) : range.first;
  clear(tile.acc, steps);  // it collects what nobody asks for
  clear(tile.u_sum, steps);
  for (int s = 0; s < pr.num_subsets; ++s) {
    const uint32_t subset = pr.subsets[s];
    if (!(subset >> m & 1)) continue;
    for (int64_t k = range.first; k < last; ++k) {
      const int64_t i = pr.receiver(m, k, j);
      const T weight = pr.pair_weight(subset, k, i, pr.factors[s]);
      if (weight == T(0)) continue;
      const auto normaliser = prepare_row<Team, D>(pr, i, steps, tile);
      take_apart<Team, D>(pr, subset, i, steps, normaliser, tile);
      add_pair<Team, D, true>(pr, s, k, i, steps, tile, weight);
    }
  }
  parts.add_tile(tile.u_sum, steps);
}

}  // namespace MCR_ISA
}  // namespace mcr
