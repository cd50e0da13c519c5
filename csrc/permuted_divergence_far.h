// permuted_divergence of two modalities where the rows of a pair are some way apart, which is most
// of the work there is: the two passes of permuted_divergence_pull.h with as little arithmetic as
// they can have. What is not far (see below), the passes of that file do.
//
// With A' = A - its row's largest and E = 2^A' as the rows' powers, B those of the bias, m the
// modality taken from donor j and o the other one, all of it [C] and in units of log2:
//
//     G = E_o[i] B,   S = sum G E_m[i],   Z = sum G E_m[j],   r = S / Z
//     p = G E_m[i] / S,   q = G E_m[j] / Z,   (p + q) / 2 = G T / (2 S)   with T = E_m[i] + r
//     E_m[j] log2(p / mean) = A'_m[i] + 1 - log2 T,   log2(q / mean) = A'_m[j] - log2 T + 1 + log2
//     r
//
// so that a class costs one logarithm and, where E is read and not computed, no exponential. The
// donor's side takes log2(T / E_m[j]) = log2(r + E_m[i] / E_m[j]); what depends on the donor alone
// waits for the end of its sum. Here log2(q / mean) is off by a rounding of A', which the
// divergence feels in first order: so only pairs with KL(q | mean) above kFar. And sums below
// kLeast may have lost terms to underflow.
#pragma once

#include "permuted_divergence_far_problem.h"
#include "permuted_divergence_pull.h"

namespace mcr {
namespace MCR_ISA {

constexpr double kLeast = 1e-6;
// The clean path adds up log2 T: not so many of them that its rounding shows.
constexpr int64_t kFarRun = 64;

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
  int64_t i;
  int64_t donors;       // where the modality that is taken begins
  T* record;            // of the next pair
  T clean_sum, weight;  // S
  T kept, kl_q;  // pairs that were far, and the sum of their KL(q | mean) over ln2: of this run
};

// The pair of a row and its donor j, if `keep`; whether it is far. Its record is left to the caller
// where it is not.
template <class Team, bool kGrad, bool kTable, class T>
MCR_FN bool add_far_pair(const FarProblem<T>& pr, int32_t j, int64_t steps, const FarTiles<T>& tile,
                         bool keep, FarRow<T>& row) {
  constexpr int W = kWidth<T>;
  const int64_t at = row.donors + pr.offset_of(j);
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
  const bool far = in_range && kl_q > T(kFar);
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
  const int64_t i = Team::opaque(row.i);
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

// Row i with its donors, those that are far; the others are left to pull_row. The lanes of several
// teams stay together: one without a row or a permutation of its own goes through the motions. More
// than one part: kFarRun permutations in each at most. `memory` holds FarTiles<T>::kCount tiles.
template <class Team, bool kGrad, bool kTable, class T, class Parts>
MCR_FN void pull_far_row(const FarProblem<T>& pr, int64_t i, int64_t steps, T* memory,
                         const Parts& parts) {
  constexpr int W = kWidth<T>;
  const PartRange<Parts> range(pr, parts);
  const FarTiles<T> tile(memory, steps * W);
  for (int s = 0; s < pr.num_subsets; ++s) {
    const int m = pr.taken(s);
    Team::load_padded(pr.power_row(m, i), steps, tile.own);
    Team::load_padded(pr.power_row(1 - m, i), steps, tile.others);
    Team::load_padded(pr.bias_powers, steps, tile.donor);
    MCR_UNROLL
    for (int64_t n = 0; n < steps; ++n) {
      store(tile.others + n * W, load(tile.others + n * W) * load(tile.donor + n * W));
    }
    const T clean_sum = Team::reduce_sum(sum_of_products(steps, tile.own, tile.others));
    const bool records = parts.live && Team::leads();
    FarRow<T> row = {i, m * pr.rows * pr.row_stride, pr.record(s, range.first, i), clean_sum,
                     parts.live ? pr.factors[s] : T(0)};
    if (parts.live && pr.row_weight) row.weight *= pr.row_weight[i];
    int64_t k = range.first;
    do {
      const int64_t last = k + kFarRun < range.last ? k + kFarRun : range.last;
      row.kept = row.kl_q = 0;
      clear(tile.acc, steps);
      clear(tile.u_sum, steps);
      for (; k < last; ++k) {
        // Rows that begin near all their donors go on like that, at the start of a training run.
        if (k == range.first + 2 && Team::all(row.kept == T(0))) break;
        const bool mine = k < pr.last;
        const int32_t j = pr.template far_donor<kTable>(mine ? k : pr.first, int32_t(i));
        const bool keep =
            mine && row.weight != T(0) && (!pr.masked || pr.far_keeps(m, int32_t(i), j));
        const bool far = add_far_pair<Team, kGrad, kTable>(pr, j, steps, tile,
                                                           keep && clean_sum > T(kLeast), row);
        if (!far && records && mine) {
          *row.record = T(0);
          if (keep) *pr.nothing_near = 0;
        }
        row.record += pr.record_step();
      }
      parts.add(row.kept);
      parts.add(row.kl_q);
      parts.add_tile(tile.acc, steps);
      if (kGrad) parts.add_tile(tile.u_sum, steps);
      if (!parts.leads()) row.kept = 0;
      const double value = end_far_run<Team, kGrad>(pr, s, steps, tile, row);
      if (records && parts.leads()) pr.row_values[s * pr.rows + i] += value;
      if (k == last) continue;
      for (; records && k < range.end(pr); ++k, row.record += pr.record_step()) {
        *row.record = T(0);
        if (row.weight != T(0)) *pr.nothing_near = 0;
      }
      break;
    } while (k < range.last);
  }
}

// What row j gets from the rows that it gives to, as far as they are far. Class by class: any cut
// of a row's classes will do. `memory` holds 6 tiles.
template <class Team, bool kTable, class T, class Parts>
MCR_FN void pull_far_donations(const FarProblem<T>& pr, int64_t j, int64_t steps, T* memory,
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
  const T* records = pr.record(0, range.first, 0);
  const int64_t record_step = pr.record_step();
  const uint32_t record_size = uint32_t(kFarRecord * pr.num_subsets);
  T taken[2] = {};
  const int64_t last = range.end(pr);
  for (int64_t k = range.first; parts.live && k < last; ++k, records += record_step) {
    const int32_t i = pr.template far_receiver<kTable>(k, int32_t(j));
    const T* record = records + uint64_t(uint32_t(i)) * record_size;
    T ratio[2], scale[2], offset[2];
    MCR_UNROLL
    for (int m = 0; m < 2; ++m) {
      const int s = pr.subset_of[m];  // where none takes m, another's record, to be passed over
      Team::load_record(record + (s < 0 ? 0 : kFarRecord * s), ratio[m], scale[m], offset[m]);
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
