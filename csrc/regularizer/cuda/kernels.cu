// What lies between the terms of the regularizer: the logits, element by element, and by the first
// thread the numbers of the whole batch.
#include "cuda/blocks.h"
#include "regularizer/cuda/kernels.h"

namespace mcr {
namespace cuda {
namespace {

__device__ void finish_numbers(const Terms& terms) {
  float mipd = 0.0f, total = 0.0f;
  for (int s = 0; s < terms.subsets; ++s) mipd -= terms.divergences[s];
  for (int m = 0; m < terms.modalities; ++m) total += terms.divergences[m];
  *terms.mipd = mipd;
  *terms.loss = terms.contrastive_weight * *terms.contrastive + terms.mipd_weight * mipd;
  for (int m = 0; m < terms.modalities; ++m) {
    terms.importance[m] =
        total == 0.0f ? 1.0f / float(terms.modalities) : terms.divergences[m] / total;
  }
}

__global__ void finish_terms_kernel(const Terms terms) {
  const int64_t size = terms.rows * terms.classes;
  for (int64_t n = first_index(); n < size; n += index_step()) {
    float sum = terms.contributions[n];
    for (int m = 1; m < terms.modalities; ++m) sum += terms.contributions[m * size + n];
    terms.logits[n] = terms.bias ? sum + terms.bias[n % terms.classes] : sum;
  }
  if (first_index() == 0) finish_numbers(terms);
}

}  // namespace

void finish_terms(const Terms& terms, cudaStream_t stream) {
  const unsigned blocks = blocks_for(terms.rows * terms.classes);
  finish_terms_kernel<<<blocks, kBlockThreads, 0, stream>>>(terms);
}

}  // namespace cuda
}  // namespace mcr
