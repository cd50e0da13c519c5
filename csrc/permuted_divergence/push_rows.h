// The rows of permuted_divergence as a team walks them: its own, and their donors under one
// permutation.
#pragma once

#include "core/team.h"
#include "permuted_divergence/problem.h"

namespace mcr {
namespace MCR_ISA {

// One modality's rows as the team reads them and adds to their gradient. Contiguous to the team:
// step n is at + n * stride. Gathered: `stride` is from row to row, which are turned into lanes, a
// quad of classes at a time.
template <class T, bool kGather>
struct Walk {
  const T* from;      // contributions
  const T* powers;    // 2^contribution
  T* to;              // their gradient
  const int32_t* at;  // kGather: [kWidth] the row of each lane
  int64_t stride;

  Vec<T> read(int64_t n) const { return load(from + n * stride); }
  Vec<T> power(int64_t n) const { return load(powers + n * stride); }
  void add(int64_t n, Vec<T> x) const {
    T* p = to + n * stride;
    store(p, load(p) + x);
  }

  // tile += the rows
  void add_to(T* tile, int64_t steps) const {
    constexpr int W = kWidth<T>;
    if constexpr (kGather) {
      for (int64_t n = 0; n < steps; n += 4) {
        Vec<T> columns[4];
        load_quads(from + n, stride, at, columns);
        transpose_quads(columns);
        for (int i = 0; i < 4 && n + i < steps; ++i) {
          store(tile + (n + i) * W, load(tile + (n + i) * W) + columns[i]);
        }
      }
    } else {
      for (int64_t n = 0; n < steps; ++n) store(tile + n * W, load(tile + n * W) + read(n));
    }
  }

  // their gradient += tile
  void add_tile(const T* tile, int64_t steps) const {
    constexpr int W = kWidth<T>;
    if constexpr (kGather) {
      for (int64_t n = 0; n < steps; n += 4) {
        Vec<T> columns[4] = {};
        for (int i = 0; i < 4 && n + i < steps; ++i) columns[i] = load(tile + (n + i) * W);
        transpose_quads(columns);
        add_quads(to + n, stride, at, columns);
      }
    } else {
      for (int64_t n = 0; n < steps; ++n) add(n, load(tile + n * W));
    }
  }
};

// The pairs of one block of rows under one permutation: who the donors are, what the pair weighs.
template <class T, class Team, bool kGather>
struct Pairs {
  int members = 0;
  Walk<T, kGather> donors[kMaxModalities];
  typename Team::Keep kept = {};
  typename Team::Scalar weight = {};
};

template <class T, class Team, bool kGather>
class Block {
 public:
  Block(const PermutedDivergenceProblem<T>& problem, T* grad, int64_t number)
      : pr_(problem), grad_(grad), first_(number * Team::kRows) {
    for (int l = 0; kGather && l < Team::kRows; ++l) {
      own_at_[l] = first_ + l < problem.rows ? int32_t(first_ + l) : 0;
    }
  }
  Block(const Block&) = delete;

  // The block's own rows of modality m.
  Walk<T, kGather> rows(int m) const {
    const int64_t at = offset(m) + (kGather ? 0 : kLanes ? first_ : first_ * pr_.row_stride);
    return {pr_.contributions + at, nullptr, grad_ + at, own_at_, stride()};
  }

  // Its pairs under permutation k; false if every one is dropped.
  bool pair_up(uint32_t subset, int64_t k, T factor, Pairs<T, Team, kGather>& pairs) const {
    pairs.members = 0;
    if (!weigh(subset, k, factor, pairs)) return false;
    for (int m = 0; m < pr_.modalities; ++m) {
      if (!(subset >> m & 1)) continue;
      pairs.donors[pairs.members++] = donors(m, k);
    }
    return true;
  }

 private:
  static constexpr bool kLanes = Team::kRows > 1;

  int64_t offset(int m) const { return m * pr_.modality_stride; }
  int64_t stride() const { return kGather ? pr_.row_stride : pr_.step_stride; }

  Walk<T, kGather> donors(int m, int64_t k) const {
    int64_t at = offset(m);
    const int32_t* index = nullptr;
    if (kGather) {
      index = pr_.donor_row(m, k) + first_;
    } else if (kLanes) {  // the copy behind the last row makes the wrap-around plain
      at += first_ + pr_.shift(m, k);
    } else {
      at += pr_.donor(m, k, first_) * pr_.row_stride;
    }
    return {pr_.contributions + at, pr_.powers + at, grad_ + at, index, stride()};
  }

  T pair_weight(uint32_t subset, int64_t k, int64_t row, T factor) const {
    return row >= pr_.rows ? T(0) : pr_.pair_weight(subset, k, row, factor);
  }

  bool weigh(uint32_t subset, int64_t k, T factor, Pairs<T, Team, kGather>& pairs) const {
    if constexpr (kLanes) {
      T weights[Team::kRows];
      if (!pr_.may_drop && !pr_.row_weight && first_ + Team::kRows <= pr_.rows) {
        pairs.weight = splat(factor);
      } else {
        for (int l = 0; l < Team::kRows; ++l) {
          weights[l] = pair_weight(subset, k, first_ + l, factor);
        }
        pairs.weight = load(weights);
      }
      pairs.kept = pairs.weight != T(0);
      return sum(pairs.kept) != 0;
    } else {
      pairs.weight = pair_weight(subset, k, first_, factor);
      return pairs.weight != T(0);
    }
  }

  const PermutedDivergenceProblem<T>& pr_;
  T* grad_;
  int64_t first_;
  int32_t own_at_[Team::kRows];
};

}  // namespace MCR_ISA
}  // namespace mcr
