// What the launchers of reconstruction_loss are called with.
#pragma once

#include "core/arguments.h"

namespace mcr {

// Latents of one batch whose widths add up to the reconstruction's.
inline Arguments check_parts(const std::vector<Tensor>& latents, const Tensor& reconstruction) {
  const Arguments arguments("reconstruction_loss", reconstruction);
  int64_t width = 0;
  STD_TORCH_CHECK(reconstruction.dim() == 2,
                  "reconstruction_loss: reconstruction must be a matrix");
  for (const Tensor& z : latents) {
    arguments.check("latents", z, Holds::kFloats, {reconstruction.size(0), kAnySize});
    width += z.size(1);
  }
  arguments.check("reconstruction", reconstruction, Holds::kFloats, {kAnySize, width});
  return arguments;
}

}  // namespace mcr
