// A divergence by its name, for launchers.
#pragma once

#include "core/arguments.h"
#include "divergence/kind.h"

namespace mcr {

inline DivergenceKind divergence_kind(const std::string& name) {
  std::vector<const char*> known;
  for (const DivergenceTraits& traits : kDivergences) known.push_back(traits.name);
  return DivergenceKind(place_of("divergence", name, known));
}

}  // namespace mcr
