// The forward and backward of a contrastive loss, but for its kernels over rows.
#pragma once

#include <tuple>

#include "contrastive/cuda/kernels.h"
#include "cuda/tensors.h"

namespace mcr {
namespace cuda {

// (loss [], unit gradient [L, D] float32, or [0, 0] where none is wanted)
std::tuple<Tensor, Tensor> contrastive_fwd(const Tensor& embeddings,       // [L, D]
                                           const Tensor& labels,           // [L] int64
                                           const OptionalTensor& present,  // [L] bool
                                           double temperature, bool want_grad,
                                           const ContrastiveKernels& kernels);

Tensor contrastive_bwd(const Tensor& grad,       // []
                       const Tensor& unit_grad,  // [L, D] float32
                       ScalarType dtype);

}  // namespace cuda
}  // namespace mcr
