// What reconstruction_loss is told about one modality.
#pragma once

#include <stdint.h>

namespace mcr {

// A modality's latents, stored as Z, beside its own columns of the reconstruction, stored as H.
// Numbers of a row lie side by side; the strides are from row to row. Gradients are for the
// backward alone.
struct ReconstructionPart {
  const void* latents;         // [N, width]
  const void* reconstruction;  // [N, width], from the modality's first column on
  int64_t latents_stride, reconstruction_stride;
  int64_t width;
  void* grad_latents;         // [N, width]
  void* grad_reconstruction;  // [N, width], from the modality's first column on
  int64_t grad_stride;        // of grad_reconstruction; grad_latents has no gaps
};

}  // namespace mcr
