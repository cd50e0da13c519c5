// A linear layer over concatenated latents: its products, each reading and writing its modality's
// columns in place.
#pragma once

#include "cpu/products.h"
#include "dispatch.h"
#include "permuted_divergence/cpu/launcher.h"
#include "permuted_divergence/layer.h"

namespace mcr {

// A matrix on memory that somebody owns; a tensor only for a library's product, as making one costs
// a small batch more than its own.
struct View {
  void* memory;
  ScalarType dtype;
  int64_t rows, columns, row_stride, column_stride;

  static View of(const Tensor& x) {
    // what is only read is not written through it
    return {const_cast<void*>(x.const_data_ptr()),
            x.scalar_type(),
            x.size(0),
            x.size(1),
            x.stride(0),
            x.stride(1)};
  }
  View transposed() const { return {memory, dtype, columns, rows, column_stride, row_stride}; }
  // Columns [first, first + width) of elements of `size` bytes.
  View cut(int64_t first, int64_t width, int64_t size) const {
    return {static_cast<char*>(memory) + first * column_stride * size,
            dtype,
            rows,
            width,
            row_stride,
            column_stride};
  }
  float* floats() const { return static_cast<float*>(memory); }
  Tensor tensor() const { return matrix(memory, dtype, rows, columns, row_stride, column_stride); }
};

// The columns of modality after modality of a layer's weight [C, sum of D_m], or of its gradient.
class Columns {
 public:
  explicit Columns(const Tensor& weight)
      : weight_(View::of(weight)), element_size_(weight.element_size()) {}

  // The next `width` of them, [C, width]; not a copy.
  View next(int64_t width) {
    const View columns = weight_.cut(first_, width, element_size_);
    first_ += width;
    return columns;
  }

 private:
  const View weight_;
  const int64_t element_size_;
  int64_t first_ = 0;
};

// Up to this many multiplications a library's products spend most of their time on being called.
constexpr int64_t kMaxOwnProduct = int64_t{1} << 18;
constexpr int64_t kMaxOwnClasses = 32;

// The three products of one modality: by our own loops where the batch is small, else the
// library's.
class Products {
 public:
  Products(const View& z, const View& w)  // [N, D], [C, D]
      : z_(z), w_(w), kernels_(cpu_kernels().linear) {
    own_ = z.dtype == ScalarType::Float && w.dtype == ScalarType::Float && z.column_stride == 1 &&
           w.column_stride == 1 && w.rows <= kMaxOwnClasses &&
           z.rows * w.rows * z.columns <= kMaxOwnProduct;
    problem_ = {z.floats(), w.floats(), z.rows, w.rows, z.columns, z.row_stride, w.row_stride};
  }

  // out [N, C] = Z W^T
  void forward(const View& out) const {
    if (own_) return kernels_.forward(problem_, out.floats());
    multiply(z_.tensor(), w_.transposed().tensor(), 0.0, out.tensor());
  }

  // out [N, D] = G W, contiguous
  void grad_z(const View& g, const View& out) const {
    if (own_) return kernels_.grad_z(problem_, g.floats(), out.floats());
    multiply(g.tensor(), w_.tensor(), 0.0, out.tensor());
  }

  // out [C, D] = G^T Z
  void grad_w(const View& g, const View& out) const {
    if (!own_) return multiply(g.transposed().tensor(), z_.tensor(), 0.0, out.tensor());
    LinearProblem problem = problem_;
    problem.w_stride = out.row_stride;
    kernels_.grad_w(problem, g.floats(), out.floats());
  }

 private:
  const View z_, w_;
  const LinearKernels& kernels_;
  LinearProblem problem_;
  bool own_;
};

// Matrix m of a contiguous [M, N, C].
inline View matrix_of(const Tensor& x, int64_t m) {
  const int64_t N = x.size(1), C = x.size(2);
  char* memory = const_cast<char*>(data<const char>(x));
  return {memory + m * N * C * x.element_size(), x.scalar_type(), N, C, C, 1};
}

// The contributions [M, N, C] of latents that fit.
inline Tensor contributions_of(const std::vector<Tensor>& latents, const Tensor& weight) {
  const int64_t M = int64_t(latents.size()), N = latents[0].size(0), C = weight.size(0);
  const Tensor contributions = empty_cpu({M, N, C}, weight.scalar_type());
  Columns columns(weight);
  for (int64_t m = 0; m < M; ++m) {
    const View w = columns.next(latents[m].size(1));
    Products(View::of(latents[m]), w).forward(matrix_of(contributions, m));
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
    const View g = matrix_of(grad_contributions, m);
    const int64_t width = latents[m].size(1);
    const View w = columns.next(width);
    grad_latents.push_back(wanted[m] ? empty_cpu({N, width}, dtype) : empty_cpu({0, 0}, dtype));
    const Products products(View::of(latents[m]), w);
    if (wanted[m]) products.grad_z(g, View::of(grad_latents.back()));
    if (to_weight) products.grad_w(g, grad_columns.next(width));
  }
  return {std::move(grad_latents), grad_weight};
}

}  // namespace mcr
