// Who runs a row. A team names the vector type of one step and the type that holds one number per
// row: a scalar when the lanes are classes of one row, a vector when every lane has a row of its
// own. Steps are kWidth<T> apart in all tiles.
#pragma once

#include "core/vec.h"

namespace mcr {
namespace MCR_ISA {

// Rows that go through the two passes together, at most.
constexpr int kGroup = 8;

template <class V>
struct ElementOf;
template <>
struct ElementOf<Vec<float>> {
  using type = float;
};
template <>
struct ElementOf<Vec<double>> {
  using type = double;
};

struct AllLanes {
  template <class V>
  MCR_INLINE V keep(V x) const {
    return x;
  }
  template <class V>
  MCR_INLINE V select(V x, V) const {
    return x;
  }
};

// Lanes low <= l < high.
template <class T>
struct SomeLanes {
  Mask<T> kept;
  MCR_INLINE SomeLanes(int64_t low, int64_t high) {
    constexpr int64_t W = kWidth<T>;
    Mask<T> lane;
    for (int l = 0; l < W; ++l) lane[l] = l;
    kept = (lane >= int(low < 0 ? 0 : low > W ? W : low)) & (lane < int(high > W ? W : high));
  }
  MCR_INLINE Vec<T> keep(Vec<T> x) const { return kept ? x : Vec<T>{}; }
  MCR_INLINE Vec<T> select(Vec<T> x, Vec<T> otherwise) const { return kept ? x : otherwise; }
};

// Lanes are consecutive classes of one row; rows are padded to whole vectors.
template <class T>
struct RowTeam {
  using V = Vec<T>;
  using Scalar = T;
  struct Keep {};
  static constexpr int kRows = 1;
  static constexpr bool kFarTerms = sizeof(T) == sizeof(float);  // Jsd::far_terms pays
  static constexpr bool kTilesAreMemory = true;  // reading costs less than to make a number again
  // f(column, lanes) for the vectors that hold columns low .. high - 1. Vectors start at multiples
  // of their width, so no vector reaches into the columns of another tile.
  template <class F>
  MCR_INLINE static void for_columns(int64_t low, int64_t high, const F& f) {
    constexpr int W = kWidth<T>;
    for (int64_t j = low / W * W; j < high; j += W) {
      if (j >= low && j + W <= high) {
        f(j, AllLanes());
      } else {
        f(j, SomeLanes<T>(low - j, high - j));
      }
    }
  }
  static Scalar reduce_sum(V v) { return sum(v); }
  static double total(Scalar x) { return x; }
  static Scalar reduce_max(V v) {
    T m = v[0];
    for (int l = 1; l < kWidth<T>; ++l) m = v[l] > m ? v[l] : m;
    return m;
  }
  static Scalar scalar_log2(Scalar x) { return log2(splat(x))[0]; }
  // The logarithms of a group of rows, all at once.
  static void group_log2(const Scalar (&x)[kGroup], Scalar (&y)[kGroup]) {
    for (int g = 0; g < kGroup; g += kWidth<T>) {
      T padded[kWidth<T>] = {}, logs[kWidth<T>];
      for (int l = 0; l < kWidth<T> && g + l < kGroup; ++l) padded[l] = x[g + l];
      store(logs, log2(load(padded)));
      for (int l = 0; l < kWidth<T> && g + l < kGroup; ++l) y[g + l] = logs[l];
    }
  }
  static bool all_between(Scalar x, T low, T high) { return x > low && x < high; }
  static bool any_below(Keep, Scalar x, T bound) { return !(x > bound); }  // NaN is
  template <class X>
  static X keep(Keep, X x) {
    return x;
  }
  static void note(Keep&, Keep) {}
};

// Every lane has a row of its own: no reduction, no padding of the classes. For few classes.
template <class T>
struct LaneTeam {
  using V = Vec<T>;
  using Scalar = Vec<T>;
  using Keep = Mask<T>;
  static constexpr int kRows = kWidth<T>;
  static constexpr bool kFarTerms = RowTeam<T>::kFarTerms, kTilesAreMemory = true;
  static Scalar reduce_sum(V v) { return v; }
  static double total(Scalar x) {
    double y = 0;
    for (int l = 0; l < kWidth<T>; ++l) y += x[l];
    return y;
  }
  static Scalar reduce_max(V v) { return v; }
  static Scalar scalar_log2(Scalar x) { return log2(x); }
  static void group_log2(const Scalar (&x)[kGroup], Scalar (&y)[kGroup]) {
    for (int g = 0; g < kGroup; ++g) y[g] = log2(x[g]);
  }
  static bool all_between(Scalar x, T low, T high) {
    return sum((x > low) & (x < high)) == -kWidth<T>;
  }
  static bool any_below(Keep kept, Scalar x, T bound) { return sum(kept & ~(x > bound)) != 0; }
  // A dropped pair adds exactly 0, whatever its row holds.
  static V keep(Keep kept, V x) { return kept ? x : V{}; }
  static void note(Keep& seen, Keep kept) { seen |= kept; }
};

}  // namespace MCR_ISA
}  // namespace mcr
