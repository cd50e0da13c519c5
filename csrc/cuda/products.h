// Matrix products of torch's library, on memory of a launcher.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cuda.h>

#include <array>

#include "cuda/tensors.h"

namespace mcr {
namespace cuda {

// A matrix on the memory of x, from its element `first` on; nothing is copied, and what is only
// read is not written through it.
inline Tensor matrix_on(const Tensor& x, int64_t first, const std::array<int64_t, 2>& sizes,
                        const std::array<int64_t, 2>& strides) {
  char* from = const_cast<char*>(data<const char>(x)) + first * x.element_size();
  return torch::stable::from_blob(from, {sizes.data(), 2}, {strides.data(), 2}, x.device(),
                                  x.scalar_type());
}
// Rows of a contiguous matrix, or the transpose of one with contiguous rows.
inline Tensor rows_of(const Tensor& x, int64_t first, int64_t rows) {
  if (rows == x.size(0)) return x;
  const int64_t width = x.size(1);
  return matrix_on(x, first * width, {rows, width}, {width, 1});
}
inline Tensor transposed(const Tensor& x) {
  return matrix_on(x, 0, {x.size(1), x.size(0)}, {1, x.stride(0)});
}

// out = a b in float32, of float32 matrices with the precision that torch is set to, or of 16-bit
// ones. Neither looks at autocast: that would round a float32 matrix to 16 bits.
inline void multiply(const Tensor& a, const Tensor& b, const Tensor& out) {
  if (a.scalar_type() == ScalarType::Float) {
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_cuda_mm_out(out.get(), a.get(), b.get()));
    return;
  }
  // The C function of this one is newer than the oldest torch that is served.
  std::array<StableIValue, 4> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(ScalarType::Float),
                                    torch::stable::detail::from(out)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "dtype_out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // the result owns a reference
}

// out = beta * out + a b, of float32 matrices; what out holds does not matter if beta is 0.
inline void add_product(const Tensor& a, const Tensor& b, double beta, const Tensor& out) {
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cuda_addmm_out(out.get(), out.get(), a.get(), b.get(), beta, 1.0));
}

}  // namespace cuda
}  // namespace mcr
