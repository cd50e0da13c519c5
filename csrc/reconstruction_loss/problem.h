// What reconstruction_loss is told about one modality.
#pragma once

#include <stdint.h>

namespace mcr {

// A modality's latents, stored as Z, beside its own columns of the reconstruction, stored as H.
// Numbers of a row lie side by side; the strides are from row to row. Gradients are for the
// backward alone.
template <class Z, class H>
struct ReconstructionPart {
  const Z* latents;         // [N, width]
  const H* reconstruction;  // [N, width], from the modality's first column on
  int64_t latents_stride, reconstruction_stride;
  int64_t width;
  Z* grad_latents;         // [N, width]
  H* grad_reconstruction;  // [N, width], from the modality's first column on
  int64_t grad_stride;     // of grad_reconstruction; grad_latents has no gaps
};

}  // namespace mcr
