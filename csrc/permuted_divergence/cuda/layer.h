// A linear layer over concatenated latents: its products by our own kernels where the batch is
// small, else the library's; each reads and writes its modality's columns in place.
#pragma once

#include "cuda/products.h"
#include "permuted_divergence/cuda/products.h"
#include "permuted_divergence/layer.h"

namespace mcr {
namespace cuda {

// The layer with the memory it points to.
class LayerInputs {
 public:
  LayerInputs(const std::vector<Tensor>& latents, const Tensor& weight)
      : weight_(rows_in_place(weight)) {
    layer_.modalities = int(latents.size());
    layer_.rows = latents[0].size(0);
    layer_.classes = weight.size(0);
    layer_.width = weight.size(1);
    layer_.weight = data<const float>(weight_);
    layer_.weight_stride = weight_.stride(0);
    int64_t first = 0;
    for (int m = 0; m < layer_.modalities; ++m) {
      latents_.push_back(rows_in_place(latents[m]));
      const Tensor& z = latents_.back();
      layer_.of[m] = {data<const float>(z), z.size(1), z.stride(0), first};
      first += z.size(1);
    }
  }

  const Layer& layer() const { return layer_; }
  // Up to so many multiplications a launch costs more than what a library's products save.
  bool small() const {
    constexpr int64_t kMaxOwnProduct = int64_t{1} << 23;
    return layer_.rows * layer_.classes * layer_.width <= kMaxOwnProduct;
  }
  Tensor z(int m) const { return latents_[m]; }
  Tensor columns(int m) const {  // [C, D_m] of the weight
    return columns_of(weight_, layer_.of[m].first, layer_.of[m].width);
  }

  // Columns first .. of a matrix whose rows are contiguous; not a copy.
  static Tensor columns_of(const Tensor& x, int64_t first, int64_t width) {
    return matrix_on(x, first, {x.size(0), width}, {x.stride(0), 1});
  }

 private:
  static Tensor rows_in_place(const Tensor& x) {
    STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float,
                    "the CUDA kernels of a linear layer take float32");
    return x.stride(1) == 1 ? x : torch::stable::contiguous(x);
  }

  Tensor weight_;
  std::vector<Tensor> latents_;
  Layer layer_ = {};
};

// Matrix m of a contiguous [M, N, C].
inline Tensor matrix_of(const Tensor& x, int64_t m) {
  const int64_t N = x.size(1), C = x.size(2);
  return matrix_on(x, m * N * C, {N, C}, {C, 1});
}

// The contributions [M, N, C].
inline Tensor contributions_of(const LayerInputs& inputs, const Tensor& weight,
                               cudaStream_t stream) {
  const Layer& layer = inputs.layer();
  const Tensor to =
      empty_beside(weight, {layer.modalities, layer.rows, layer.classes}, ScalarType::Float);
  if (inputs.small()) {
    layer_products(layer, data<float>(to), stream);
    return to;
  }
  for (int m = 0; m < layer.modalities; ++m) {
    multiply(inputs.z(m), transposed(inputs.columns(m)), matrix_of(to, m));
  }
  return to;
}

// The gradients of the latents and the weight; those that are not `wanted` come back empty. `grad`
// has all but where they go.
inline std::tuple<std::vector<Tensor>, Tensor> layer_backward(const LayerInputs& inputs,
                                                              LayerGrad grad,
                                                              const std::vector<int64_t>& wanted,
                                                              const Tensor& weight,
                                                              cudaStream_t stream) {
  const Layer& layer = inputs.layer();
  const int M = layer.modalities;
  const int64_t N = layer.rows, C = layer.classes;
  const auto made = [&](bool want, int64_t rows, int64_t columns) {
    return empty_beside(weight, {want ? rows : 0, want ? columns : 0}, ScalarType::Float);
  };
  const Tensor grad_weight = made(wanted[M], C, layer.width);
  if (wanted[M]) grad.to_weight = data<float>(grad_weight);
  std::vector<Tensor> grad_latents;
  for (int m = 0; m < M; ++m) {
    grad_latents.push_back(made(wanted[m], N, layer.of[m].width));
    if (wanted[m]) grad.to_latents[m] = data<float>(grad_latents[m]);
  }
  if (inputs.small()) {
    layer_grads(layer, grad, stream);
    return {std::move(grad_latents), grad_weight};
  }
  const Tensor to = empty_beside(weight, {M, N, C}, ScalarType::Float);
  layer_grad_parts(layer, grad, data<float>(to), stream);
  for (int m = 0; m < M; ++m) {
    const Tensor g = matrix_of(to, m);
    if (wanted[m]) {
      add_product(g, inputs.columns(m), grad.unit_rows ? 1.0 : 0.0, grad_latents[m]);
    }
    if (!wanted[M]) continue;
    multiply(transposed(g), inputs.z(m),
             LayerInputs::columns_of(grad_weight, layer.of[m].first, layer.of[m].width));
  }
  return {std::move(grad_latents), grad_weight};
}

}  // namespace cuda
}  // namespace mcr
