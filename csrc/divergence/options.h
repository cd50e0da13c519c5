// A divergence by its name, for launchers.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <string>

#include "divergence/kind.h"

namespace mcr {

inline DivergenceKind divergence_kind(const std::string& name) {
  std::string known;
  int kind = 0;
  for (const DivergenceTraits& traits : kDivergences) {
    if (name == traits.name) return DivergenceKind(kind);
    known += (kind++ ? ", " : "") + std::string(traits.name);
  }
  STD_TORCH_CHECK(false, "divergence must be one of ", known, ", got ", name);
  return DivergenceKind();
}

}  // namespace mcr
