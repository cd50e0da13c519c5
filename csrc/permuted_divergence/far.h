// permuted_divergence of two modalities where the rows of a pair are some way apart, which is most
// of the work there is: the two passes of sides.h with as little arithmetic as
// they can have. What is not far (see below), the passes of that file do.
//
// With A' = A - its row's largest and E = 2^A' as the rows' powers, B those of the bias, m the
// modality taken from donor j and o the other one, all of it [C] and in units of log2:
//
//     G = E_o[i] B,   S = sum G E_m[i],   Z = sum G E_m[j],   r = S / Z
//     T = E_m[i] + r E_m[j]
//     p = G E_m[i] / S,   q = G E_m[j] / Z,   mean = (p + q) / 2 = G T / (2 S)
//     log2(p / mean) = A'_m[i] + 1 - log2 T
//     log2(q / mean) = A'_m[j] + 1 - log2 T + log2 r
//
// so that a class costs one logarithm and, where E is read and not computed, no exponential. The
// donor's side takes log2(T / E_m[j]) = log2(r + E_m[i] / E_m[j]); what depends on the donor alone
// waits for the end of its sum. Here log2(q / mean) is off by a rounding of A', which the
// divergence feels in first order: so only pairs with KL(q | mean) above kFarKl. And sums below
// kLeast may have lost terms to underflow.
#pragma once

#include "permuted_divergence/far_problem.h"
#include "permuted_divergence/sides.h"

namespace mcr {
namespace MCR_ISA {

// From this KL(q | mean) on, over ln2, two rows are far apart: 0.007 nats.
constexpr double kFarKl = 0.01;
constexpr double kLeast = 1e-6;
// The clean path adds up log2 T: not so many of them that its rounding shows.
constexpr int64_t kFarRun = 64;
// Rows that begin near as many donors go on like that, at the start of a training run.
constexpr int kTrial = 2;

// Tiles of one row, each of steps * kWidth<T> numbers.
template <class T>
struct FarTiles {
  static constexpr int kCount = 6;
  T *own, *others;          // E_m[i], G
  T *acc, *u_sum;           // sum of log2 T; sum of u / (G weight ln2/2)
  T *donor, *donor_powers;  // A'_m[j], E_m[j]

  MCR_FN FarTiles(T* base, int64_t size)
      : own(base),
        others(base + size),
        acc(base + 2 * size),
        u_sum(base + 3 * size),
        donor(base + 4 * size),
        donor_powers(base + 5 * size) {}
};

template <class T>
MCR_FN Vec<T> sum_of_products(int64_t steps, const T* a, const T* b) {
  constexpr int W = kWidth<T>;
  Vec<T> sum = {};
  MCR_UNROLL
  for (int64_t n = 0; n < steps; ++n) sum += load(a + n * W) * load(b + n * W);
  return sum;
}

// tile = E of the row whose A' is in `from`.
template <class T>
MCR_FN void powers_of(int64_t steps, const T* from, T* tile) {
  constexpr int W = kWidth<T>;
  MCR_UNROLL
  for (int64_t n = 0; n < steps; ++n) {
    store(tile + n * W, vmax(Vec<T>{} + T(kLeastPower), exp2(load(from + n * W))));
  }
}

// One row under one subset, as it goes through its pairs.
template <class T>
struct FarRow {
  int32_t i;
  int s;
  int32_t end;           // its permutations are below: none is where there is no such row
  uint32_t donors;       // the first row of the modality that is taken
  FarRecord<T>* record;  // of the next pair
  T clean_sum, weight;   // S
  T kept, kl_q;  // pairs that were far, and the sum of their KL(q | mean) over ln2: of this run
};

// The pair of a row and its donor j, if `keep`; whether it is far. Its record is left to the caller
// where it is not.
template <class Team, bool kGrad, bool kTable, class T>
MCR_FN bool add_far_pair(const FarProblem<T>& pr, int32_t j, int64_t steps, const FarTiles<T>& tile,
                         bool keep, FarRow<T>& row) {
  constexpr int W = kWidth<T>;
  const int64_t at = pr.offset_of(row.donors + j);
  Team::load_padded(pr.contributions + at, steps, tile.donor);
  if (kTable) {  // computed, for rows from all over the batch cost more to read
    powers_of(steps, tile.donor, tile.donor_powers);
  } else {
    Team::load_padded(pr.powers + at, steps, tile.donor_powers);
  }
  const T total = Team::reduce_sum(sum_of_products(steps, tile.others, tile.donor_powers));
  const T inverse = Team::reciprocal(total), ratio = row.clean_sum * inverse;
  const bool in_range = keep && total > T(kLeast);
  Vec<T> sum = {};
  if (in_range) {
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      const Vec<T> e = load(tile.donor_powers + n * W);
      const Vec<T> log2_t = Team::quick_log2(e * ratio + load(tile.own + n * W));
      store(tile.acc + n * W, load(tile.acc + n * W) + log2_t);
      const Vec<T> h = e * (load(tile.donor + n * W) - log2_t);
      store(tile.donor + n * W, h);
      sum += load(tile.others + n * W) * h;
    }
  }
  const T mean = Team::reduce_sum(sum) * inverse;
  const T kl_q = mean + T(1) + Team::quick_log2(ratio);
  const bool far = in_range && kl_q > T(kFarKl);
  if (far) {
    row.kept += T(1);
    row.kl_q += kl_q;
    const T scale = -inverse * mean;
    MCR_UNROLL
    for (int64_t n = 0; kGrad && n < steps; ++n) {
      const Vec<T> u = load(tile.u_sum + n * W) + inverse * load(tile.donor + n * W);
      store(tile.u_sum + n * W, u + scale * load(tile.donor_powers + n * W));
    }
  } else if (in_range) {
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      const Vec<T> t = load(tile.donor_powers + n * W) * ratio + load(tile.own + n * W);
      store(tile.acc + n * W, load(tile.acc + n * W) - Team::quick_log2(t));
    }
  }
  if (far && Team::leads()) {
    const T scale = row.weight * T(kHalfLn2) * inverse;
    Team::store_record(row.record, ratio, -scale, -scale * mean);
  }
  return far;
}

// Adds a tile with the sum of u or of v to the gradients that stay at row i, if `any`.
template <class Team, class T>
MCR_FN void route_far(const FarProblem<T>& pr, int s, int64_t i, int64_t steps, const T* tile,
                      bool of_u, bool any) {
  const T* staged = Team::stage(tile, steps);
  if (!any) return;
  route_own_row(pr, s, i, [&](T* row, bool u_wanted, T factor) {
    if (u_wanted == of_u) Team::add_staged(row, pr.classes, staged, steps, factor);
  });
}

// Adds the run's value, and with kGrad what stays at row i.
template <class Team, bool kGrad, class T>
MCR_FN double end_far_run(const FarProblem<T>& pr, int s, int64_t steps, const FarTiles<T>& tile,
                          const FarRow<T>& row) {
  constexpr int W = kWidth<T>;
  const int32_t i = Team::opaque(row.i);
  Team::load_padded(pr.row(pr.taken(s), i), steps, tile.donor);
  const T inverse = T(1) / row.clean_sum;
  Vec<T> sum = {};
  MCR_UNROLL
  for (int64_t n = 0; n < steps; ++n) {
    const Vec<T> p = inverse * load(tile.own + n * W) * load(tile.others + n * W);
    const Vec<T> pm = row.kept * (T(1) + load(tile.donor + n * W)) - load(tile.acc + n * W);
    sum += p * pm;
    store(tile.donor_powers + n * W, p);
    store(tile.acc + n * W, pm);
  }
  const T kl_p = Team::reduce_sum(sum);
  const T factor = row.weight * T(kHalfLn2);
  if (kGrad) {
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      const Vec<T> v = load(tile.donor_powers + n * W) * (load(tile.acc + n * W) - kl_p);
      store(tile.acc + n * W, factor * v);
      store(tile.u_sum + n * W, factor * load(tile.others + n * W) * load(tile.u_sum + n * W));
    }
    route_far<Team>(pr, s, i, steps, tile.u_sum, true, row.kept != T(0));
    route_far<Team>(pr, s, i, steps, tile.acc, false, row.kept != T(0));
  }
  if (row.kept == T(0)) return 0;
  return double(factor * (row.kl_q + kl_p));
}

// Row i under subset s, with E_m[i] and G in their tiles; k is the first permutation.
template <class Team, class T>
MCR_FN FarRow<T> begin_far_row(const FarProblem<T>& pr, int s, int64_t i, int64_t k, bool live,
                               int64_t steps, const FarTiles<T>& tile) {
  constexpr int W = kWidth<T>;
  const int m = pr.taken(s);
  Team::load_padded(pr.power_row(m, i), steps, tile.own);
  Team::load_padded(pr.power_row(1 - m, i), steps, tile.others);
  Team::load_padded(pr.bias_powers, steps, tile.donor);
  MCR_UNROLL
  for (int64_t n = 0; n < steps; ++n) {
    store(tile.others + n * W, load(tile.others + n * W) * load(tile.donor + n * W));
  }
  FarRow<T> row = {int32_t(i), s, int32_t(live ? pr.last : pr.first),
                   uint32_t(m) * uint32_t(pr.rows), pr.records + pr.pair(s, k, i)};
  row.clean_sum = Team::reduce_sum(sum_of_products(steps, tile.own, tile.others));
  row.weight = live ? pr.factors[s] : T(0);
  if (live && pr.row_weight) row.weight *= pr.row_weight[i];
  return row;
}

// Whether the pair with donor j has something to add. A row that is its own donor has not, if its
// numbers are finite and in range: S is NaN where they are not.
template <bool kTable, class T>
MCR_FN bool has_something(const FarProblem<T>& pr, const FarRow<T>& row, int32_t j) {
  if (row.weight == T(0) || (pr.may_drop && !pr.far_keeps(pr.taken(row.s), row.i, j))) return false;
  return !kTable || j != row.i || !(row.clean_sum > T(kLeast));
}

// The record of pair k, which is not far: left to the other passes, or nothing at all.
template <class Team, bool kTable, class T>
MCR_FN void set_aside(const FarProblem<T>& pr, const FarRow<T>& row, int64_t k) {
  if (!Team::leads()) return;
  const int32_t j = pr.template far_donor<kTable>(k, row.i);
  const bool left = has_something<kTable>(pr, row, j);
  row.record->ratio = T(left ? kLeft : kNothing);
  if (left) pr.leave(row.s, row.i, j);
}

// Whether the first kTrial pairs, those before k, were all near: in this row or another one of the
// teams that stay together, and not far in any.
template <class Team, class T>
MCR_FN bool gives_up(const FarProblem<T>& pr, int64_t k, const FarRow<T>& row) {
  bool near = k <= row.end && Team::leads();  // who wrote the records
  for (int n = 1; near && n <= kTrial; ++n) {
    near = row.record[-n * pr.record_step()].ratio == T(kLeft);
  }
  return Team::all(row.kept == T(0)) && !Team::all(!near);
}

// A run of the pairs k .. last - 1. Returns the one that it stopped before, at `trial` or the end.
template <class Team, bool kGrad, bool kTable, class T>
MCR_FN int64_t run_far_pairs(const FarProblem<T>& pr, int64_t k, int64_t last, int64_t trial,
                             int64_t steps, const FarTiles<T>& tile, FarRow<T>& row) {
  row.kept = row.kl_q = 0;
  clear(tile.acc, steps);
  clear(tile.u_sum, steps);
  for (; k < last; ++k, row.record += pr.record_step()) {
    if (k == trial && gives_up<Team>(pr, k, row)) break;
    const bool mine = k < row.end;
    const int32_t j = pr.template far_donor<kTable>(mine ? k : pr.first, row.i);
    const bool tries = mine && has_something<kTable>(pr, row, j);
    const bool keep = tries && row.clean_sum > T(kLeast);
    const bool far = add_far_pair<Team, kGrad, kTable>(pr, j, steps, tile, keep, row);
    if (!far && mine) set_aside<Team, kTable>(pr, row, k);
  }
  return k;
}

// The pairs k .. last - 1 go to the other passes.
template <class Team, bool kTable, class T>
MCR_FN void leave_pairs(const FarProblem<T>& pr, int64_t k, int64_t last, FarRow<T>& row) {
  for (; k < last && k < row.end; ++k, row.record += pr.record_step()) {
    set_aside<Team, kTable>(pr, row, k);
  }
}

// Row i with its donors, those that are far; the others are left to own_side_of. The lanes of
// several teams stay together: one without a row or a permutation of its own goes through the
// motions. More than one part: kFarRun permutations in each at most. `memory` holds
// FarTiles<T>::kCount tiles.
template <class Team, bool kGrad, bool kTable, class T, class Parts>
MCR_FN void far_own_side_of(const FarProblem<T>& pr, int64_t i, int64_t steps, T* memory,
                            const Parts& parts) {
  const PartRange<Parts> range(pr, parts);
  const FarTiles<T> tile(memory, steps * kWidth<T>);
  for (int s = 0; s < pr.num_subsets; ++s) {
    FarRow<T> row = begin_far_row<Team>(pr, s, i, range.first, parts.live, steps, tile);
    const int64_t trial = range.first + kTrial;
    int64_t last = range.first, stop = last;
    while (stop == last && last < range.last) {
      last = last + kFarRun < range.last ? last + kFarRun : range.last;
      stop = run_far_pairs<Team, kGrad, kTable>(pr, stop, last, trial, steps, tile, row);
      parts.add(row.kept);
      parts.add(row.kl_q);
      parts.add_tile(tile.acc, steps);
      if (kGrad) parts.add_tile(tile.u_sum, steps);
      if (!parts.leads()) row.kept = 0;
      const double value = end_far_run<Team, kGrad>(pr, s, steps, tile, row);
      if (parts.leads() && Team::leads()) pr.row_values[s * pr.rows + i] += value;
    }
    if (stop < last) leave_pairs<Team, kTable>(pr, stop, range.last, row);
  }
}

// What row j gets from the rows that it gives to, as far as they are far. Class by class: any cut
// of a row's classes will do. `memory` holds 6 tiles.
template <class Team, bool kTable, class T, class Parts>
MCR_FN void far_donor_side(const FarProblem<T>& pr, int64_t j, int64_t steps, T* memory,
                           const Parts& parts) {
  constexpr int W = kWidth<T>;
  const PartRange<Parts> range(pr, parts);
  const int64_t size = steps * W;
  T *inverse[2], *sum[2], *from[2];
  MCR_UNROLL
  for (int m = 0; m < 2; ++m) {
    inverse[m] = memory + m * size;
    sum[m] = memory + (2 + m) * size;
    from[m] = memory + (4 + m) * size;
    Team::load_padded(pr.power_row(m, j), steps, inverse[m]);
    clear(sum[m], steps);
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      store(inverse[m] + n * W, Team::reciprocal(load(inverse[m] + n * W)));
    }
  }
  const T* rows[2] = {pr.power_row(0, 0), pr.power_row(1, 0)};
  const FarRecord<T>* records = pr.records + pr.pair(0, range.first, 0);
  const int64_t record_step = pr.record_step();
  T taken[2] = {};
  const int64_t last = range.end(pr);
  for (int64_t k = range.first; parts.live && k < last; ++k, records += record_step) {
    const int32_t i = pr.template far_receiver<kTable>(k, int32_t(j));
    const FarRecord<T>* record = records + uint64_t(uint32_t(i)) * uint32_t(pr.num_subsets);
    T ratio[2], scale[2], offset[2];
    MCR_UNROLL
    for (int m = 0; m < 2; ++m) {
      const int s = pr.subset_of[m];  // where none takes m, another's record, to be passed over
      Team::load_record(record + (s < 0 ? 0 : s), ratio[m], scale[m], offset[m]);
      if (s < 0) ratio[m] = T(0);
    }
    if (!(ratio[0] > T(0)) && !(ratio[1] > T(0))) continue;
    Team::load_padded(rows[0] + pr.offset_of(i), steps, from[0]);
    Team::load_padded(rows[1] + pr.offset_of(i), steps, from[1]);
    MCR_UNROLL
    for (int m = 0; m < 2; ++m) {
      if (!(ratio[m] > T(0))) continue;
      taken[m] = 1;
      MCR_UNROLL
      for (int64_t n = 0; n < steps; ++n) {
        const Vec<T> t = load(from[m] + n * W) * load(inverse[m] + n * W) + ratio[m];
        const Vec<T> u = scale[m] * Team::quick_log2(t) + offset[m];
        store(sum[m] + n * W, load(sum[m] + n * W) + load(from[1 - m] + n * W) * u);
      }
    }
  }
  Team::load_padded(pr.bias_powers, steps, inverse[0]);
  MCR_UNROLL
  for (int m = 0; m < 2; ++m) {
    parts.add(taken[m]);
    parts.add_tile(sum[m], steps);
    if (taken[m] == T(0) || !parts.leads()) continue;  // nothing is added, whatever the row holds
    Team::load_padded(pr.power_row(m, j), steps, from[m]);
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      const Vec<T> outside = load(inverse[0] + n * W) * load(from[m] + n * W);
      store(sum[m] + n * W, outside * load(sum[m] + n * W));
    }
    add_to_row<Team>(pr.grad_row(m, j), pr.classes, sum[m], steps, T(1));
  }
}

}  // namespace MCR_ISA
}  // namespace mcr
