// Matrix products of torch's library on memory that a launcher owns. They repeat bit for bit for
// the same sizes, alignment and thread count.
#pragma once

#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

#include "cpu/tensors.h"

namespace mcr {

// A tensor on memory that somebody else owns.
inline Tensor matrix(void* data, ScalarType dtype, int64_t rows, int64_t columns,
                     int64_t row_stride, int64_t column_stride) {
  const int64_t sizes[] = {rows, columns}, strides[] = {row_stride, column_stride};
  return torch::stable::from_blob(data, {sizes, 2}, {strides, 2},
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype);
}

template <class T>
Tensor matrix(const T* data, int64_t rows, int64_t columns, int64_t row_stride,
              int64_t column_stride) {
  return matrix(const_cast<T*>(data), scalar_type_of<T>(), rows, columns, row_stride,
                column_stride);
}

// out = beta * out + a b; what out holds does not matter if beta is 0.
inline void multiply(const Tensor& a, const Tensor& b, double beta, const Tensor& out) {
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_cpu_addmm_out(out.get(), out.get(), a.get(), b.get(), beta, 1.0));
}

// Elsewhere torch has them too, but slower than in float32.
inline bool has_bfloat16_products() {
#if defined(__x86_64__)
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has;
#else
  return false;
#endif
}

}  // namespace mcr
