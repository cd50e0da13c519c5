// permuted_divergence of a linear layer over concatenated latents, from the latents: the layer's
// products and the divergence in one call. On a small batch the calls between them would cost as
// much as the arithmetic.
#include "permuted_divergence/cpu/layer.h"

namespace mcr {
namespace {

constexpr char kOp[] = "linear_permuted_divergence";

std::tuple<Tensor, Tensor, Tensor, Tensor> fwd(
    const std::vector<Tensor>& latents,  // M tensors [N, D_m]
    const Tensor& weight,                // [C, sum of D_m]
    const OptionalTensor& bias,          // and on: as in permuted_divergence/arguments.h
    const OptionalTensor& order, const OptionalTensor& donors, const OptionalTensor& labels,
    const OptionalTensor& present, const OptionalTensor& sample_weight,
    const std::vector<int64_t>& subsets, const std::string& strategy, const std::string& clean_path,
    const std::string& divergence, const std::string& exclude, bool want_grad) {
  check_layer(kOp, latents, weight);
  const Tensor contributions = contributions_of(latents, weight);
  const auto [values, unit_grad, unit_grad_bias] = permuted_divergence_forward(
      {contributions, bias, order, donors, labels, present, sample_weight, subsets, strategy,
       clean_path, divergence, exclude},
      want_grad);
  return {values, unit_grad, unit_grad_bias, contributions};
}

// `wanted`: the gradients to make, of each latent and then of the weight; the others come back
// empty, the bias's too without `grad`. One of `grad` and `grad_contributions` is given.
std::tuple<std::vector<Tensor>, Tensor, Tensor> bwd(
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
  const ScalarType dtype = weight.scalar_type();
  Tensor to_contributions = contributions;
  Tensor grad_bias = empty_cpu({0}, bias ? bias->scalar_type() : dtype);
  if (grad_contributions) to_contributions = contiguous_as(*grad_contributions, dtype);
  if (grad) {
    const auto [routed, to_bias] = permuted_divergence_backward(
        *grad, unit_grad, unit_grad_bias,
        {contributions, bias, order, donors, labels, present, sample_weight, subsets, strategy,
         clean_path, divergence, exclude});
    to_contributions =
        grad_contributions ? torch::stable::subtract(routed, to_contributions, -1.0) : routed;
    grad_bias = to_bias;
  }
  auto [grad_latents, grad_weight] = layer_backward(to_contributions, wanted, latents, weight);
  return {std::move(grad_latents), grad_weight, grad_bias};
}

}  // namespace
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CPU, m) {
  m.impl("linear_permuted_divergence_fwd", TORCH_BOX(&mcr::fwd));
  m.impl("linear_permuted_divergence_bwd", TORCH_BOX(&mcr::bwd));
}
