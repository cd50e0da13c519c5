// What the launchers of the two divergences share: the options by their names.
#pragma once

#include <string>

#include "permuted_divergence_problem.h"

namespace mcr {

inline DivergenceKind divergence_kind(const std::string& name) {
  return name == "jsd"          ? DivergenceKind::kJsd
         : name == "binary_jsd" ? DivergenceKind::kBinaryJsd
                                : DivergenceKind::kSquaredError;
}

inline CleanPath clean_path(const std::string& name) {
  return name == "shared"   ? CleanPath::kShared
         : name == "routed" ? CleanPath::kRouted
                            : CleanPath::kDetached;
}

// What the modalities outside a subset get of its gradient.
inline int outsider(const std::string& strategy) {
  return strategy == "greedy" ? -1 : strategy == "independent" ? 0 : 1;
}

inline Exclude exclude(const std::string& name) {
  return name == "self"         ? Exclude::kSelf
         : name == "same_label" ? Exclude::kSameLabel
                                : Exclude::kNone;
}

}  // namespace mcr
