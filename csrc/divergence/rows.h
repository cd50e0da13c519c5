// The rows that a divergence compares, as its passes read them.
#pragma once

#include "divergence/kind.h"
#if defined(__CUDACC__)
#include "core/lane.h"
#else
#include "core/team.h"
#endif

namespace mcr {
namespace MCR_ISA {

constexpr double kHalfLn2 = kLn2 / 2;

// What a clean row is to all the rows held against it.
template <class T>
struct CleanRow {
  T* logits;              // [steps] of vectors, in the units of the input
  T* log2p;               // [steps] (binary: log2((1 + 2^-|z|) / 2), no logits: 0 or NaN)
  T* p;                   // [steps] of the softmax
  T unit;                 // of the input, in units of log2
  T* outcomes = nullptr;  // [2 * steps] binary, where tiles are memory: p and 1 - p
};

// A perturbed row kept in tiles: its difference from the clean row, and up to a factor 2^w.
template <class T>
struct StoredRow {
  static constexpr bool kHasPowers = false;
  T *delta, *q;

  MCR_FN Vec<T> difference(int64_t n) const { return load(delta + n * kWidth<T>); }
  MCR_FN Vec<T> power(int64_t n) const { return load(q + n * kWidth<T>); }
};

// The same before the first pass, with the logits in the place of the powers; `settle` fills the
// tiles again where that is needed (Jsd::rescale).
template <class T, class Settle>
struct FilledRow : StoredRow<T> {
  static constexpr bool kMayOverflow = false;
  const Settle& settle;

  MCR_FN FilledRow(const StoredRow<T>& pair, const Settle& f) : StoredRow<T>(pair), settle(f) {}
  MCR_FN Vec<T> logit(int64_t n) const { return load(this->q + n * kWidth<T>); }
  MCR_FN const FilledRow& settled(int64_t) const {
    settle();
    return *this;
  }
};

// Calls `second_pass` with what the first pass left: the row itself, or the tiles.
template <class D, class T, class Row, class F>
MCR_INLINE auto with_row(const Row& row, StoredRow<T> tiles, bool stored, const F& second_pass) {
  if constexpr (!D::kTraits.softmax) {
    return second_pass(row);
  } else if constexpr (!Row::kHasPowers) {
    return second_pass(tiles);
  } else {
    return stored ? second_pass(tiles) : second_pass(row);
  }
}

template <class T>
MCR_FN void clear(T* tile, int64_t steps) {
  MCR_UNROLL
  for (int64_t n = 0; n < steps; ++n) store(tile + n * kWidth<T>, Vec<T>{});
}

// 0 where every element is finite, else NaN: added to a normaliser so that an infinite logit gives
// NaN and not a plausible number.
template <class V>
MCR_INLINE V poison(V x) {
  return x * V{};
}

// x within +-limit; NaN where it is not finite.
template <class V>
MCR_INLINE V saturated(V x, double limit) {
  using T = typename ElementOf<V>::type;
  return vmax(V{} - T(limit), vmin(V{} + T(limit), x)) + poison(x);
}

// For a divergence whose second pass reads the rows themselves and needs nothing of a first one.
struct InOnePass {
  template <class Team, class T, class Row>
  MCR_FN static typename Team::Scalar first_pass(int64_t, const Row&, StoredRow<T>,
                                                 typename Team::Scalar& total, bool& stored) {
    total = typename Team::Scalar{} + T(1);
    stored = false;
    return typename Team::Scalar{};
  }
  template <class T>
  MCR_FN static const T* clean_part(CleanRow<T> clean) {
    return clean.logits;  // in the units that the divergence reads
  }
  template <class Team, class T>
  MCR_FN static typename Team::Scalar clean_kl(int64_t, CleanRow<T>, const T*) {
    return typename Team::Scalar{};
  }
};

}  // namespace MCR_ISA
}  // namespace mcr
