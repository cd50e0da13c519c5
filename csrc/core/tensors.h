// What the launchers of CPU and CUDA need of tensors of torch's stable ABI.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <tuple>
#include <type_traits>
#include <vector>

namespace mcr {

using torch::headeronly::IntHeaderOnlyArrayRef;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// A uint16_t is a bfloat16's bits.
template <class T>
constexpr ScalarType scalar_type_of() {
  if (std::is_floating_point_v<T>) return sizeof(T) == 8 ? ScalarType::Double : ScalarType::Float;
  if (std::is_same_v<T, bool>) return ScalarType::Bool;
  if (std::is_same_v<T, uint16_t>) return ScalarType::BFloat16;
  if (sizeof(T) < 4) return sizeof(T) == 1 ? ScalarType::Byte : ScalarType::Short;
  return sizeof(T) == 8 ? ScalarType::Long : ScalarType::Int;
}

// x, contiguous and of the dtype; x itself where it already is, without the dispatcher's
// microsecond.
inline Tensor contiguous_as(const Tensor& x, ScalarType dtype) {
  const Tensor y = x.scalar_type() == dtype ? x : torch::stable::to(x, dtype);
  return y.is_contiguous() ? y : torch::stable::contiguous(y);
}

// Its memory; data<const T> of what is only read, for other tensors may share it.
template <class T>
T* data(const Tensor& x) {
  if constexpr (std::is_const_v<T>) {
    return static_cast<T*>(x.const_data_ptr());
  } else {
    return static_cast<T*>(x.mutable_data_ptr());
  }
}

// A contiguous tensor on a device, its memory not written.
inline Tensor empty_on(int32_t device_type, int32_t device_index, IntHeaderOnlyArrayRef sizes,
                       ScalarType dtype) {
  int64_t strides[8];
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<int64_t>(1, sizes[d]);
  }
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.data(), strides, type, device_type, device_index, &handle));
  return Tensor(handle);
}

}  // namespace mcr
