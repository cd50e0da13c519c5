// What the launchers of the contrastive losses are called with.
#pragma once

#include "core/arguments.h"

namespace mcr {

// What the contrastive losses take of embeddings [L, D]: a label a row, [L], or those of N rows
// that all M = L / N modalities share, and then presence [N, M].
inline void check_rows(const Tensor& embeddings, const Tensor& labels,
                       const OptionalTensor& present, double temperature) {
  const Arguments arguments("the contrastive losses", embeddings);
  arguments.check("embeddings", embeddings, Holds::kFloats, {kAnySize, kAnySize});
  const int64_t L = embeddings.size(0), N = labels.dim() == 1 ? labels.size(0) : 0;
  if (N > 0 && N < L && L % N == 0) {
    arguments.check("labels", labels, Holds::kIndices, {N});
    arguments.check("present", present, Holds::kMarks, {N, L / N});
  } else {
    arguments.check("labels", labels, Holds::kIndices, {L});
    arguments.check("present", present, Holds::kMarks, {L});
  }
  STD_TORCH_CHECK(temperature > 0, "temperature must be above 0, got ", temperature);
}

}  // namespace mcr
