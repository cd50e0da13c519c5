// permuted_divergence of a linear layer over concatenated latents, from the latents: the layer's
// products and the divergence in one call.
#include "permuted_divergence/cuda/launcher.h"
#include "permuted_divergence/cuda/layer.h"

namespace mcr {
namespace cuda {
namespace {

constexpr char kOp[] = "linear_permuted_divergence";

std::tuple<Tensor, Tensor, Tensor, Tensor> linear_fwd(
    const std::vector<Tensor>& latents,  // M tensors [N, D_m]
    const Tensor& weight,                // [C, sum of D_m]
    const OptionalTensor& bias,          // and on: as in permuted_divergence/arguments.h
    const OptionalTensor& order, const OptionalTensor& donors, const OptionalTensor& labels,
    const OptionalTensor& present, const OptionalTensor& sample_weight,
    const std::vector<int64_t>& subsets, const std::string& strategy, const std::string& clean_path,
    const std::string& divergence, const std::string& exclude, bool want_grad) {
  check_layer(kOp, latents, weight);
  const OnDeviceOf device(weight);
  const LayerInputs inputs(latents, weight);
  const Tensor contributions = contributions_of(inputs, weight, device.stream());
  const auto [values, unit_grad, unit_grad_bias] = permuted_divergence_forward(
      {contributions, bias, order, donors, labels, present, sample_weight, subsets, strategy,
       clean_path, divergence, exclude},
      want_grad);
  return {values, unit_grad, unit_grad_bias, contributions};
}

// `wanted`: the gradients to make, of each latent and then of the weight; the others come back
// empty, the bias's too without `grad`. One of `grad` and `grad_contributions` is given.
std::tuple<std::vector<Tensor>, Tensor, Tensor> linear_bwd(
    const OptionalTensor& grad,  // [S]
    const Tensor& unit_grad, const Tensor& unit_grad_bias, const Tensor& contributions,
    const OptionalTensor& grad_contributions,  // [M, N, C], added
    const std::vector<int64_t>& wanted,        // [M + 1]
    const std::vector<Tensor>& latents,        // and on: as the forward took them
    const Tensor& weight, const OptionalTensor& bias, const OptionalTensor& order,
    const OptionalTensor& donors, const OptionalTensor& labels, const OptionalTensor& present,
    const OptionalTensor& sample_weight, const std::vector<int64_t>& subsets,
    const std::string& strategy, const std::string& clean_path, const std::string& divergence,
    const std::string& exclude) {
  check_layer_backward(kOp, latents, weight, grad.has_value(), contributions, grad_contributions,
                       wanted);
  const OnDeviceOf device(weight);
  LayerGrad to = {};
  std::optional<Tensor> routed, added;
  Tensor grad_bias = empty_beside(weight, {0}, bias ? bias->scalar_type() : weight.scalar_type());
  if (grad_contributions) {
    added = contiguous_as(*grad_contributions, ScalarType::Float);
    to.added = data<const float>(*added);
    to.added_stride = added->stride(0);
  }
  if (grad) {
    std::tie(routed, grad_bias) = permuted_divergence_backward(
        *grad, unit_grad, unit_grad_bias,
        {contributions, bias, order, donors, labels, present, sample_weight, subsets, strategy,
         clean_path, divergence, exclude});
    to.unit = data<const float>(*routed);
    to.factor.constant = 1;
  }
  const LayerInputs inputs(latents, weight);
  auto [grad_latents, grad_weight] = layer_backward(inputs, to, wanted, weight, device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {std::move(grad_latents), grad_weight, grad_bias};
}

}  // namespace
}  // namespace cuda
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CUDA, m) {
  m.impl("linear_permuted_divergence_fwd", TORCH_BOX(&mcr::cuda::linear_fwd));
  m.impl("linear_permuted_divergence_bwd", TORCH_BOX(&mcr::cuda::linear_bwd));
}
