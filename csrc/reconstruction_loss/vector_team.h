// A CPU thread alone as the team of a row: a step is one vector.
#pragma once

#include "core/bfloat16.h"

namespace mcr {
namespace MCR_ISA {

template <class T>
struct VectorTeam {
  using V = Vec<T>;
  static constexpr int64_t kStepsPerSum = 1024 / kWidth<T>;

  static int64_t whole_steps(int64_t width) { return width / kWidth<T>; }
  static bool has_rest(int64_t width) { return width % kWidth<T> != 0; }
  template <class In>
  static V load(const In* row, int64_t n) {
    return load_as(row + n * kWidth<T>);
  }
  template <class Out>
  static void store(Out* row, int64_t n, V x) {
    store_as(row + n * kWidth<T>, x);
  }
  // The last step of a row that is no whole number of them; zeros beyond its end.
  template <class In>
  static V load_rest(const In* row, int64_t n, int64_t width) {
    return load_some<T>(row + n * kWidth<T>, width - n * kWidth<T>);
  }
  template <class Out>
  static void store_rest(Out* row, int64_t n, int64_t width, V x) {
    store_some<T>(row + n * kWidth<T>, x, width - n * kWidth<T>);
  }
  static double total(V v) { return double(sum(v)); }
};

}  // namespace MCR_ISA
}  // namespace mcr
