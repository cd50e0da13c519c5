// CUDA launcher of row_divergence: groups the perturbed rows by clean row, on the device.
#include "cuda/tensors.h"
#include "divergence/options.h"
#include "row_divergence/arguments.h"
#include "row_divergence/cuda/kernels.h"

namespace mcr {
namespace cuda {
namespace {

// So few perturbed rows every clean row looks through, so many comparisons in all. More are sorted.
constexpr int64_t kFewRows = 8192, kFewComparisons = int64_t{1} << 23;

// The perturbed rows by clean row.
struct Groups {
  Tensor start;    // [N + 1] where in `members` the rows held against each clean row begin
  Tensor members;  // [R]
};

// By keys of that type; `poison` as find_starts has it. torch sorts keys by their bytes, one after
// the other.
template <class Key>
Groups sort_by(const Tensor& given, int64_t rows, const Tensor& start, double* poison,
               cudaStream_t stream) {
  const int64_t R = given.numel();
  const Tensor keys = empty_beside(given, {R}, scalar_type_of<Key>());
  narrow_rows(data<const int64_t>(given), R, rows, data<Key>(keys), stream);
  const auto [sorted, members] = stable_sort(keys);
  find_starts(data<const Key>(sorted), R, rows, data<int64_t>(start), poison, stream);
  return {start, members};
}

Groups group(const Tensor& rows_in, int64_t rows, double* poison, cudaStream_t stream) {
  const Tensor given = contiguous_as(rows_in, ScalarType::Long);
  const Tensor start = empty_beside(given, {rows + 1}, ScalarType::Long);
  const int64_t R = given.numel();
  if (R <= kFewRows && R * rows <= kFewComparisons) {
    const Tensor members = empty_beside(given, {R}, ScalarType::Long);
    list_members(data<const int64_t>(given), R, rows, data<int64_t>(start), data<int64_t>(members),
                 poison, stream);
    return {start, members};
  }
  const auto sorted = rows <= int64_t{1} << 15 ? sort_by<int16_t> : sort_by<int32_t>;
  return sorted(given, rows, start, poison, stream);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> row_divergence_fwd_cuda(
    const Tensor& perturbed_in,        // [R, C]
    const Tensor& clean_in,            // [N, C]
    const Tensor& rows,                // [R] int64
    const OptionalTensor& row_weight,  // [R]
    const std::string& divergence, bool want_grad, bool mean) {
  check_held_rows(perturbed_in, clean_in, rows, row_weight);
  const OnDeviceOf device(perturbed_in);
  const cudaStream_t stream = device.stream();
  const Tensor perturbed = contiguous_as(perturbed_in, perturbed_in.scalar_type());
  const Tensor clean = contiguous_as(clean_in, clean_in.scalar_type());
  const GivenRows perturbed_rows = {data<const void>(perturbed), storage_of(perturbed)};
  const GivenRows clean_rows = {data<const void>(clean), storage_of(clean)};
  const int64_t R = perturbed.size(0), C = perturbed.size(1), N = clean.size(0);
  STD_TORCH_CHECK(C <= kMaxClasses, "the CUDA kernel of row_divergence takes ", kMaxClasses,
                  " classes at most, got ", C);
  STD_TORCH_CHECK(N < (int64_t{1} << 31), "row_divergence: more than 2^31 clean rows");
  const int64_t g = want_grad ? 1 : 0;
  const Tensor total = empty_beside(clean, {}, ScalarType::Float);
  const Tensor weight = empty_beside(clean, {}, ScalarType::Float);
  const Tensor grad_perturbed = empty_beside(clean, {g * R, g * C}, ScalarType::Float);
  const Tensor grad_clean = empty_beside(clean, {g * N, g * C}, ScalarType::Float);
  if (N == 0) {
    clear(total, stream);
    clear(weight, stream);
    return {total, weight, grad_perturbed, grad_clean};
  }

  // a place more than there are rows: for the poison of wrong rows, which makes the weight NaN
  const Tensor row_sums = empty_beside(clean, {2, N + 1}, ScalarType::Double);
  double* values = data<double>(row_sums);
  const Groups groups = group(rows, N, values + N, stream);
  RowDivergenceProblem<float> pr = {};
  pr.start = data<const int64_t>(groups.start);
  pr.members = data<const int64_t>(groups.members);
  Tensor weights = clean;
  if (row_weight) {
    weights = contiguous_as(*row_weight, ScalarType::Float);
    pr.row_weight = data<const float>(weights);
  }
  pr.classes = C;
  pr.divergence = divergence_kind(divergence);
  pr.factor = 1.0f / float(traits_of(pr.divergence).terms(C));
  pr.want_grad = want_grad;
  pr.grad_perturbed = data<float>(grad_perturbed);
  pr.grad_clean = data<float>(grad_clean);
  hold_rows(pr, perturbed_rows, clean_rows, N, R, values, values + N + 1, stream);
  sum_and_weight(values, N + 1, mean, data<float>(total), data<float>(weight), stream);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {total, weight, grad_perturbed, grad_clean};
}

std::tuple<Tensor, Tensor> row_divergence_bwd_cuda(const Tensor& grad,            // [], of total
                                                   const OptionalTensor& weight,  // [], of a mean
                                                   const Tensor& unit_grad_perturbed,  // [R, C]
                                                   const Tensor& unit_grad_clean,      // [N, C]
                                                   const Tensor& perturbed,  // their dtypes
                                                   const Tensor& clean) {
  check_held_gradients(grad, weight, unit_grad_perturbed, unit_grad_clean, perturbed, clean, false);
  const OnDeviceOf device(perturbed);
  const Tensor upstream = contiguous_as(grad, ScalarType::Float);
  const Tensor divisor = weight ? contiguous_as(*weight, ScalarType::Float) : upstream;
  const ScaledGrad to_perturbed(unit_grad_perturbed, perturbed.scalar_type());
  const ScaledGrad to_clean(unit_grad_clean, clean.scalar_type());
  scale_grads(to_perturbed.plan(), to_clean.plan(), data<const float>(upstream), nullptr,
              device.stream(), weight ? data<const float>(divisor) : nullptr);
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
