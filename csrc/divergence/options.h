// A divergence by its name, for launchers.
#pragma once

#include "core/arguments.h"
#include "divergence/kind.h"

namespace mcr {

inline DivergenceKind divergence_kind(const std::string& name) {
  static const std::vector<const char*> known = [] {
    std::vector<const char*> names;
    for (const DivergenceTraits& traits : kDivergences) names.push_back(traits.name);
    return names;
  }();
  return DivergenceKind(place_of("divergence", name, known));
}

}  // namespace mcr
