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

// What the backward of linear_permuted_divergence takes beside them. The gradient of the
// contributions, which the layer's products read, has their dtype.
inline void check_layer_backward(const char* op, const std::vector<Tensor>& latents,
                                 const Tensor& weight, bool has_grad, const Tensor& contributions,
                                 const OptionalTensor& grad_contributions,
                                 const std::vector<int64_t>& wanted) {
  const Arguments arguments = check_layer(op, latents, weight);
  const int64_t M = int64_t(latents.size()), N = latents[0].size(0), C = weight.size(0);
  arguments.check("contributions", contributions, Holds::kFloats, {M, N, C});
  STD_TORCH_CHECK(contributions.scalar_type() == weight.scalar_type(), op,
                  ": contributions must have the dtype of the weight");
  arguments.check("grad_contributions", grad_contributions, Holds::kFloats, {M, N, C});
  STD_TORCH_CHECK(int64_t(wanted.size()) == M + 1 && (has_grad || grad_contributions), op,
                  ": wanted must hold ", M + 1, " marks, and one gradient must be given");
}

}  // namespace mcr
