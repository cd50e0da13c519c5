// Whether rows of indices are permutations. Plain C++: the emulator of CUDA compiles it too.
#pragma once

#include <cstdint>
#include <vector>

namespace mcr {

// The first row of [R, N] that does not hold each of 0..N-1 once, or -1.
inline int64_t first_non_permutation(const int64_t* row, int64_t R, int64_t N) {
  std::vector<int64_t> seen_in(N, -1);
  for (int64_t r = 0; r < R; ++r, row += N) {
    for (int64_t i = 0; i < N; ++i) {
      const int64_t j = row[i];
      if (j < 0 || j >= N || seen_in[j] == r) return r;
      seen_in[j] = r;
    }
  }
  return -1;
}

}  // namespace mcr
