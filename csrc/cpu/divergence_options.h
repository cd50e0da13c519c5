// What the launchers of the two divergences share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>

#include "divergence_kind.h"

namespace mcr {

inline DivergenceKind divergence_kind(const std::string& name) {
  return name == "jsd"          ? DivergenceKind::kJsd
         : name == "binary_jsd" ? DivergenceKind::kBinaryJsd
                                : DivergenceKind::kSquaredError;
}

// How many rows go through the two passes together: their tiles, two a row, are to stay in L1.
template <class T>
int group_of_rows(int64_t tile) {
  constexpr int64_t kGroupBytes = 1 << 14;
  return int(std::clamp<int64_t>(kGroupBytes / (2 * tile * int64_t(sizeof(T))), 1, 8));
}

}  // namespace mcr
