// What the launcher of the regularizer calls.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

namespace mcr {
namespace cuda {

struct Terms {
  const float* contributions;  // [M, N, C]
  const float* bias;           // [C] or null
  const float* divergences;    // [S], those of single modalities first
  const float* contrastive;    // []
  int64_t rows, classes;
  int modalities, subsets;
  float mipd_weight, contrastive_weight;
  float* logits;       // [N, C]
  float *loss, *mipd;  // []
  float* importance;   // [M]
};
void finish_terms(const Terms& terms, cudaStream_t stream);

}  // namespace cuda
}  // namespace mcr
