// The regularizer of a step with a linear fusion, from latents and labels to the weighted loss, in
// one call: at the size that people train at, a step is as long as it starts kernels.
#include "contrastive/cuda/launcher.h"

#include "permuted_divergence/cuda/launcher.h"
#include "permuted_divergence/cuda/layer.h"
#include "regularizer/cuda/kernels.h"

namespace mcr {
namespace cuda {
namespace {

constexpr char kOp[] = "regularizer";

using Forward = std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor>;

Forward regularizer_fwd(
    const std::vector<Tensor>& latents,  // M tensors [N, D]
    const Tensor& weight,                // [C, M * D]
    const OptionalTensor& bias,          // and on: as in permuted_divergence/arguments.h
    const OptionalTensor& order, const OptionalTensor& donors,
    const OptionalTensor& labels,  // [N], of what `exclude` drops
    const OptionalTensor& present, const OptionalTensor& sample_weight,
    const std::vector<int64_t>& subsets, const std::string& strategy, const std::string& clean_path,
    const std::string& divergence, const std::string& exclude,
    const Tensor& classes,  // [N], of the contrastive loss
    const std::string& contrastive, double temperature, double mipd_weight,
    double contrastive_weight, bool want_grad) {
  const Arguments arguments = check_layer(kOp, latents, weight);
  const int64_t M = int64_t(latents.size()), N = latents[0].size(0), D = latents[0].size(1);
  for (const Tensor& z : latents) arguments.check("latents", z, Holds::kFloats, {N, D});
  arguments.check("classes", classes, Holds::kIndices, {N});
  STD_TORCH_CHECK(int64_t(subsets.size()) >= M, kOp, ": subsets must begin with the single ones");
  const bool over_pairs = place_of("contrastive", contrastive, {"sup_con", "nt_xent"}) == 1;
  const OnDeviceOf device(weight);
  const LayerInputs inputs(latents, weight);
  const Tensor contributions = contributions_of(inputs, weight, device.stream());
  const auto [divergences, unit_grad, unit_grad_bias] = permuted_divergence_forward(
      {contributions, bias, order, donors, labels, present, sample_weight, subsets, strategy,
       clean_path, divergence, exclude},
      want_grad);
  const auto [shared, unit_grad_rows] =
      contrastive_forward(over_pairs, latents, classes, present, temperature, want_grad);
  const auto made = [&](IntHeaderOnlyArrayRef sizes) {
    return empty_beside(weight, sizes, ScalarType::Float);
  };
  const Tensor loss = made({}), mipd = made({}), importance = made({M});
  const Tensor logits = made({N, weight.size(0)});
  std::optional<Tensor> to_logits;
  if (bias) to_logits = contiguous_as(*bias, ScalarType::Float);
  finish_terms(
      {data<const float>(contributions), to_logits ? data<const float>(*to_logits) : nullptr,
       data<const float>(divergences), data<const float>(shared), N, weight.size(0), int(M),
       int(subsets.size()), float(mipd_weight), float(contrastive_weight), data<float>(logits),
       data<float>(loss), data<float>(mipd), data<float>(importance)},
      device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {loss,       mipd,      shared,         logits,        divergences,
          importance, unit_grad, unit_grad_bias, unit_grad_rows};
}

std::tuple<std::vector<Tensor>, Tensor, Tensor> regularizer_bwd(
    const OptionalTensor& grad_loss, const OptionalTensor& grad_mipd,
    const OptionalTensor& grad_contrastive,  // []
    const OptionalTensor& grad_logits,       // [N, C]
    const Tensor& unit_grad,                 // [M, N, C]
    const Tensor& unit_grad_bias,            // [C]
    const Tensor& unit_grad_rows,            // [M * N, D]
    double mipd_weight, double contrastive_weight,
    const std::vector<int64_t>& wanted,  // [M + 1], the gradients to make; the bias's always is
    const std::vector<Tensor>& latents, const Tensor& weight) {
  const Arguments arguments = check_layer(kOp, latents, weight);
  const int64_t M = int64_t(latents.size()), N = latents[0].size(0), D = latents[0].size(1);
  const int64_t C = weight.size(0);
  for (const Tensor& z : latents) arguments.check("latents", z, Holds::kFloats, {N, D});
  arguments.check_unit("unit_grad", unit_grad, false, {M, N, C});
  arguments.check_unit("unit_grad_bias", unit_grad_bias, false, {C});
  arguments.check_unit("unit_grad_rows", unit_grad_rows, false, {M * N, D});
  arguments.check("grad_logits", grad_logits, Holds::kFloats, {N, C});
  STD_TORCH_CHECK(int64_t(wanted.size()) == M + 1, kOp, ": wanted must hold ", M + 1, " marks");
  const OnDeviceOf device(weight);
  std::vector<Tensor> kept;
  const auto numbers = [&](const Tensor& x) {
    kept.push_back(contiguous_as(x, ScalarType::Float));
    return data<const float>(kept.back());
  };
  const auto number = [&](const char* name, const OptionalTensor& x) -> const float* {
    if (!x) return nullptr;
    arguments.check_number(name, *x);
    return numbers(*x);
  };
  const float* of_loss = number("grad_loss", grad_loss);
  const float* of_mipd = number("grad_mipd", grad_mipd);
  const float* of_rows = number("grad_contrastive", grad_contrastive);
  LayerGrad to = {};
  if (of_loss || of_mipd) {
    to.unit = numbers(unit_grad);
    to.unit_bias = numbers(unit_grad_bias);
  }
  if (of_loss || of_rows) to.unit_rows = numbers(unit_grad_rows);
  if (grad_logits) to.added = numbers(*grad_logits);
  // the value is minus the divergences' sum
  to.factor = {0.0f, of_loss, -float(mipd_weight), of_mipd, -1.0f};
  to.of_rows = {0.0f, of_loss, float(contrastive_weight), of_rows, 1.0f};
  const Tensor grad_bias = empty_beside(weight, {C}, ScalarType::Float);
  to.to_bias = data<float>(grad_bias);
  const LayerInputs inputs(latents, weight);
  auto [grad_latents, grad_weight] = layer_backward(inputs, to, wanted, weight, device.stream());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {std::move(grad_latents), grad_weight, grad_bias};
}

}  // namespace
}  // namespace cuda
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CUDA, m) {
  m.impl("regularizer_fwd", TORCH_BOX(&mcr::cuda::regularizer_fwd));
  m.impl("regularizer_bwd", TORCH_BOX(&mcr::cuda::regularizer_bwd));
}
