// CUDA launcher of sup_con.
#include "cuda/similarities.h"
#include "cuda/sup_con_kernels.h"

namespace mcr {
namespace cuda {
namespace {

std::tuple<Tensor, Tensor> sup_con_fwd_cuda(const Tensor& embeddings,       // [L, D]
                                            const Tensor& labels,           // [L] int64
                                            const OptionalTensor& present,  // [L] bool
                                            double temperature, bool want_grad) {
  return contrastive_fwd(embeddings, labels, present, temperature, want_grad, kSupConKernels);
}

}  // namespace
}  // namespace cuda
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CUDA, m) {
  m.impl("sup_con_fwd", TORCH_BOX(&mcr::cuda::sup_con_fwd_cuda));
  m.impl("sup_con_bwd", TORCH_BOX(&mcr::cuda::contrastive_bwd));
}
