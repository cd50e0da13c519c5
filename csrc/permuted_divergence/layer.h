// What the launchers of a linear layer over concatenated latents are called with.
#pragma once

#include "core/arguments.h"
#include "permuted_divergence/problem.h"

namespace mcr {

// Latents of one batch whose widths add up to the weight's.
inline Arguments check_layer(const char* op, const std::vector<Tensor>& latents,
                             const Tensor& weight) {
  const Arguments arguments(op, weight);
  STD_TORCH_CHECK(!latents.empty() && latents.size() <= kMaxModalities, op, ": 1 to ",
                  kMaxModalities, " latents, got ", latents.size());
  int64_t width = 0;
  for (const Tensor& z : latents) {
    arguments.check("latents", z, Holds::kFloats, {latents[0].size(0), kAnySize});
    STD_TORCH_CHECK(z.scalar_type() == weight.scalar_type(), op,
                    ": latents must have the dtype of the weight");
    width += z.size(1);
  }
  arguments.check("weight", weight, Holds::kFloats, {kAnySize, width});
  return arguments;
}

}  // namespace mcr
