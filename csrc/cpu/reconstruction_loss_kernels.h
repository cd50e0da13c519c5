#pragma once

#include <stdint.h>

namespace mcr {

// csrc/reconstruction_loss.h, arithmetic in T on numbers stored as In
template <class T, class In>
struct ReconstructionLossLoops {
  double (*squared_error)(const In* latents, const In* reconstruction, int64_t stride,
                          int64_t begin, int64_t end, int64_t width);
  void (*squared_error_grad)(const In* latents, const In* reconstruction, int64_t stride,
                             int64_t begin, int64_t end, int64_t width, T factor, In* grad_latents,
                             In* grad_reconstruction);
};

struct ReconstructionLossKernels {
  ReconstructionLossLoops<float, float> f32;
  ReconstructionLossLoops<double, double> f64;
  ReconstructionLossLoops<float, uint16_t> bf16;
};

}  // namespace mcr
