// What the launchers of the contrastive losses are called with.
#pragma once

#include "core/arguments.h"

namespace mcr {

// What the contrastive losses take of embeddings [L, D].
inline void check_rows(const Tensor& embeddings, const Tensor& labels,
                       const OptionalTensor& present, double temperature) {
  const Arguments arguments("the contrastive losses", embeddings);
  arguments.check("embeddings", embeddings, Holds::kFloats, {kAnySize, kAnySize});
  const int64_t L = embeddings.size(0);
  arguments.check("labels", labels, Holds::kIndices, {L});
  arguments.check("present", present, Holds::kMarks, {L});
  STD_TORCH_CHECK(temperature > 0, "temperature must be above 0, got ", temperature);
}

}  // namespace mcr
