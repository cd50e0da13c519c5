// CUDA launcher of nt_xent.
#include "cuda/nt_xent_kernels.h"
#include "cuda/similarities.h"

namespace mcr {
namespace cuda {
namespace {

std::tuple<Tensor, Tensor> nt_xent_fwd_cuda(const Tensor& embeddings,       // [L, D]
                                            const Tensor& labels,           // [L] int64
                                            const OptionalTensor& present,  // [L] bool
                                            double temperature, bool want_grad) {
  return contrastive_fwd(embeddings, labels, present, temperature, want_grad, kNtXentKernels);
}

}  // namespace
}  // namespace cuda
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CUDA, m) {
  m.impl("nt_xent_fwd", TORCH_BOX(&mcr::cuda::nt_xent_fwd_cuda));
  m.impl("nt_xent_bwd", TORCH_BOX(&mcr::cuda::contrastive_bwd));
}
