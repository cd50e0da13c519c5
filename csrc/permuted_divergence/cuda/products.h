// The products of a linear layer over the latents of several modalities: those of all modalities
// are one launch, each reading and writing its columns of the weight in place. Plain data.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

#include "permuted_divergence/problem.h"

namespace mcr {
namespace cuda {

struct Layer {
  int modalities;
  int64_t rows, classes, width;  // of all modalities together
  const float* weight;           // [C, weight_stride]
  int64_t weight_stride;
  struct Modality {
    const float* z;                // [N, stride]
    int64_t width, stride, first;  // its first column of the weight
  } of[kMaxModalities];
};

// contributions [M, N, C] = Z_m W_m^T
void layer_products(const Layer& layer, float* contributions, cudaStream_t stream);

// What a gradient for an upstream gradient of 1 is multiplied by: constant + weight * first[0] +
// sign * second[0].
struct Factor {
  float constant;
  const float* first;  // or null, as the next one
  float weight;
  const float* second;
  float sign;
};

// The gradient of the contributions [M, N, C] is factor * unit + added.
struct LayerGrad {
  const float* unit;  // [M, N, C]; null where that adds nothing, as with all that is null here
  Factor factor;
  const float* added;      // [M or 1, N, C]
  int64_t added_stride;    // from one modality to the next
  const float* unit_rows;  // [M * N, D] to the latents, which have one width then
  Factor of_rows;
  const float* unit_bias;             // [C]
  float* to_latents[kMaxModalities];  // [N, D_m], contiguous; null where nobody wants it
  float* to_weight;                   // [C, width]
  float* to_bias;                     // [C] factor * unit_bias + the sum of added over the rows
};
void layer_grads(const Layer& layer, const LayerGrad& grad, cudaStream_t stream);

// What comes before a library's products: to [M, N, C] the gradient of the contributions,
// to_latents the part of the rows, to_bias.
void layer_grad_parts(const Layer& layer, const LayerGrad& grad, float* to, cudaStream_t stream);

}  // namespace cuda
}  // namespace mcr
