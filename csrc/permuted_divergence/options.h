// The options of permuted_divergence by their names.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <string>

#include "divergence/options.h"
#include "permuted_divergence/problem.h"

namespace mcr {

inline CleanPath clean_path(const std::string& name) {
  if (name == "shared") return CleanPath::kShared;
  if (name == "routed") return CleanPath::kRouted;
  STD_TORCH_CHECK(name == "detached", "clean_path must be shared, routed or detached, got ", name);
  return CleanPath::kDetached;
}

// What the modalities outside a subset get of its gradient.
inline int outsider(const std::string& strategy) {
  if (strategy == "greedy") return -1;
  if (strategy == "independent") return 0;
  STD_TORCH_CHECK(strategy == "collaborative",
                  "strategy must be greedy, independent or collaborative, got ", strategy);
  return 1;
}

inline Exclude exclude(const std::string& name) {
  if (name == "self") return Exclude::kSelf;
  if (name == "same_label") return Exclude::kSameLabel;
  STD_TORCH_CHECK(name == "none", "exclude must be none, self or same_label, got ", name);
  return Exclude::kNone;
}

}  // namespace mcr
