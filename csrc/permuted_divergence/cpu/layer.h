// A linear layer over concatenated latents: its products, each reading and writing its modality's
// columns in place.
#pragma once

#include "cpu/products.h"
#include "dispatch.h"
#include "permuted_divergence/cpu/launcher.h"
#include "permuted_divergence/layer.h"

namespace mcr {

// The columns of modality after modality of a layer's weight [C, sum of D_m], or of its gradient.
class Columns {
 public:
  explicit Columns(const Tensor& weight) : weight_(weight) {}

  // The next `width` of them, [C, width]; not a copy.
  Tensor next(int64_t width) {
    char* from = data<char>(weight_) + first_ * weight_.stride(1) * weight_.element_size();
    first_ += width;
    return matrix(from, weight_.scalar_type(), weight_.size(0), width, weight_.stride(0),
                  weight_.stride(1));
  }

 private:
  const Tensor& weight_;
  int64_t first_ = 0;
};

inline Tensor transposed(const Tensor& x) {  // [A, B] -> [B, A], not a copy
  return matrix(data<void>(x), x.scalar_type(), x.size(1), x.size(0), x.stride(1), x.stride(0));
}

// Up to this many multiplications a library's products spend most of their time on being called.
constexpr int64_t kMaxOwnProduct = int64_t{1} << 18;
constexpr int64_t kMaxOwnClasses = 32;

// The three products of one modality: by our own loops where the batch is small, else the
// library's.
class Products {
 public:
  Products(const Tensor& z, const Tensor& w)  // [N, D], [C, D]
      : z_(z), w_(w), kernels_(cpu_kernels().linear) {
    const int64_t N = z.size(0), D = z.size(1), C = w.size(0);
    own_ = z.scalar_type() == ScalarType::Float && w.scalar_type() == ScalarType::Float &&
           z.stride(1) == 1 && w.stride(1) == 1 && C <= kMaxOwnClasses &&
           N * C * D <= kMaxOwnProduct;
    if (!own_) return;
    problem_ = {data<const float>(z), data<const float>(w), N, C, D, z.stride(0), w.stride(0)};
  }

  // out [N, C] = Z W^T
  void forward(const Tensor& out) const {
    if (own_) return kernels_.forward(problem_, data<float>(out));
    multiply(z_, transposed(w_), 0.0, out);
  }

  // out [N, D] = G W, contiguous
  void grad_z(const Tensor& g, const Tensor& out) const {
    if (own_) {
      return kernels_.grad_z(problem_, data<const float>(g), data<float>(out));
    }
    multiply(g, w_, 0.0, out);
  }

  // out [C, D] = G^T Z
  void grad_w(const Tensor& g, const Tensor& out) const {
    if (!own_) return multiply(transposed(g), z_, 0.0, out);
    LinearProblem problem = problem_;
    problem.w_stride = out.stride(0);
    kernels_.grad_w(problem, data<const float>(g), data<float>(out));
  }

 private:
  const Tensor &z_, &w_;
  const LinearKernels& kernels_;
  LinearProblem problem_ = {};
  bool own_;
};

// Matrix m of a contiguous [M, N, C].
inline Tensor matrix_of(const Tensor& x, int64_t m) {
  const int64_t N = x.size(1), C = x.size(2);
  return matrix(data<char>(x) + m * N * C * x.element_size(), x.scalar_type(), N, C, C, 1);
}

// The contributions [M, N, C] of latents that fit.
inline Tensor contributions_of(const std::vector<Tensor>& latents, const Tensor& weight) {
  const int64_t M = int64_t(latents.size()), N = latents[0].size(0), C = weight.size(0);
  const Tensor contributions = empty_cpu({M, N, C}, weight.scalar_type());
  Columns columns(weight);
  for (int64_t m = 0; m < M; ++m) {
    const Tensor w = columns.next(latents[m].size(1));
    Products(latents[m], w).forward(matrix_of(contributions, m));
  }
  return contributions;
}

// The gradients of a layer's latents and weight from that of its contributions. `wanted`: of each
// latent and then of the weight; the others come back empty.
inline std::tuple<std::vector<Tensor>, Tensor> layer_backward(
    const Tensor& grad_contributions,  // [M, N, C], contiguous
    const std::vector<int64_t>& wanted, const std::vector<Tensor>& latents, const Tensor& weight) {
  const int64_t M = int64_t(latents.size()), N = latents[0].size(0);
  const ScalarType dtype = weight.scalar_type();
  const bool to_weight = wanted[M] != 0;
  const Tensor grad_weight =
      to_weight ? empty_cpu({weight.size(0), weight.size(1)}, dtype) : empty_cpu({0, 0}, dtype);
  std::vector<Tensor> grad_latents;
  Columns columns(weight), grad_columns(grad_weight);
  for (int64_t m = 0; m < M; ++m) {
    const Tensor g = matrix_of(grad_contributions, m);
    const int64_t width = latents[m].size(1);
    const Tensor w = columns.next(width);
    grad_latents.push_back(wanted[m] ? empty_cpu({N, width}, dtype) : empty_cpu({0, 0}, dtype));
    const Products products(latents[m], w);
    if (wanted[m]) products.grad_z(g, grad_latents.back());
    if (to_weight) products.grad_w(g, grad_columns.next(width));
  }
  return {std::move(grad_latents), grad_weight};
}

}  // namespace mcr
