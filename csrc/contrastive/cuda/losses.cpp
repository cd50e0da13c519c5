// CUDA launchers of the contrastive losses.
#include "contrastive/cuda/similarities.h"

namespace mcr {
namespace cuda {
namespace {

template <const ContrastiveKernels& kKernels>
std::tuple<Tensor, Tensor> forward(const Tensor& embeddings,       // [L, D]
                                   const Tensor& labels,           // [L] int64
                                   const OptionalTensor& present,  // [L] bool
                                   double temperature, bool want_grad) {
  return contrastive_fwd(embeddings, labels, present, temperature, want_grad, kKernels);
}

}  // namespace
}  // namespace cuda
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CUDA, m) {
  m.impl("nt_xent_fwd", TORCH_BOX(&mcr::cuda::forward<mcr::cuda::kNtXentKernels>));
  m.impl("nt_xent_bwd", TORCH_BOX(&mcr::cuda::contrastive_bwd));
  m.impl("sup_con_fwd", TORCH_BOX(&mcr::cuda::forward<mcr::cuda::kSupConKernels>));
  m.impl("sup_con_bwd", TORCH_BOX(&mcr::cuda::contrastive_bwd));
}
