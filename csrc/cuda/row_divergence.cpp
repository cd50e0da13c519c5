// CUDA launcher of row_divergence: groups the perturbed rows by clean row, on the device.
#include <string>
#include <tuple>

#include "cuda/row_divergence_kernels.h"
#include "cuda/sort.h"
#include "cuda/tensors.h"
#include "divergence_options.h"

namespace mcr {
namespace cuda {
namespace {

std::tuple<Tensor, Tensor, Tensor, Tensor> row_divergence_fwd_cuda(
    const Tensor& perturbed_in,        // [R, C]
    const Tensor& clean_in,            // [N, C]
    const Tensor& rows,                // [R] int64
    const OptionalTensor& row_weight,  // [R]
    const std::string& divergence, bool want_grad) {
  const OnDeviceOf device(perturbed_in);
  const cudaStream_t stream = device.stream();
  storage_of(perturbed_in), storage_of(clean_in);  // refuses float64
  const Tensor perturbed = contiguous_as(perturbed_in, ScalarType::Float);
  const Tensor clean = contiguous_as(clean_in, ScalarType::Float);
  const int64_t R = perturbed.size(0), C = perturbed.size(1), N = clean.size(0);
  STD_TORCH_CHECK(C <= kMaxClasses, "the CUDA kernel of row_divergence takes ", kMaxClasses,
                  " classes at most, got ", C);
  const int64_t g = want_grad ? 1 : 0;
  const Tensor total = empty_beside(clean, {}, ScalarType::Float);
  const Tensor weight = empty_beside(clean, {}, ScalarType::Float);
  const Tensor grad_perturbed = empty_beside(clean, {g * R, g * C}, ScalarType::Float);
  const Tensor grad_clean = empty_beside(clean, {g * N, g * C}, ScalarType::Float);
  clear(grad_clean, stream);
  if (N == 0) {
    clear(total, stream);
    clear(weight, stream);
    return {total, weight, grad_perturbed, grad_clean};
  }

  const auto [sorted, members] = stable_sort(contiguous_as(rows, ScalarType::Long));
  const Tensor start = empty_beside(clean, {N + 1}, ScalarType::Long);
  int64_t* starts = static_cast<int64_t*>(start.mutable_data_ptr());
  find_starts(static_cast<const int64_t*>(sorted.const_data_ptr()), R, N, starts, stream);

  RowDivergenceProblem<float> pr = {};
  pr.perturbed = static_cast<const float*>(perturbed.const_data_ptr());
  pr.clean = static_cast<const float*>(clean.const_data_ptr());
  pr.start = starts;
  pr.members = static_cast<const int64_t*>(members.const_data_ptr());
  Tensor weights = clean;
  if (row_weight) {
    weights = contiguous_as(*row_weight, ScalarType::Float);
    pr.row_weight = static_cast<const float*>(weights.const_data_ptr());
  }
  pr.classes = C;
  pr.divergence = divergence_kind(divergence);
  pr.factor = pr.divergence == DivergenceKind::kJsd || C == 0 ? 1.0f : 1.0f / float(C);
  pr.want_grad = want_grad;
  pr.grad_perturbed = static_cast<float*>(grad_perturbed.mutable_data_ptr());
  pr.grad_clean = static_cast<float*>(grad_clean.mutable_data_ptr());
  const Tensor row_sums = empty_beside(clean, {2, N}, ScalarType::Double);
  double* values = static_cast<double*>(row_sums.mutable_data_ptr());
  hold_rows(pr, N, values, values + N, stream);
  sum_two_values(values, N, static_cast<float*>(total.mutable_data_ptr()),
                 static_cast<float*>(weight.mutable_data_ptr()), stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {total, weight, grad_perturbed, grad_clean};
}

std::tuple<Tensor, Tensor> row_divergence_bwd_cuda(const Tensor& grad,  // [], of total
                                                   const Tensor& unit_grad_perturbed,  // [R, C]
                                                   const Tensor& unit_grad_clean,      // [N, C]
                                                   const Tensor& perturbed,  // their dtypes
                                                   const Tensor& clean) {
  const OnDeviceOf device(perturbed);
  const Tensor upstream = contiguous_as(grad, ScalarType::Float);
  const ScaledGrad to_perturbed(unit_grad_perturbed, perturbed.scalar_type());
  const ScaledGrad to_clean(unit_grad_clean, clean.scalar_type());
  scale(to_perturbed, to_clean, upstream, device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {to_perturbed.result(), to_clean.result()};
}

}  // namespace
}  // namespace cuda
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CUDA, m) {
  m.impl("row_divergence_fwd", TORCH_BOX(&mcr::cuda::row_divergence_fwd_cuda));
  m.impl("row_divergence_bwd", TORCH_BOX(&mcr::cuda::row_divergence_bwd_cuda));
}
