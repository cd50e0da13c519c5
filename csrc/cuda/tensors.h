// What every CUDA launcher needs of stable-ABI tensors, the current stream and launches.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>

#include "cuda/sums.h"

namespace mcr {
namespace cuda {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// Makes a tensor's device the current one, and holds the stream that torch uses there.
class OnDeviceOf {
 public:
  explicit OnDeviceOf(const Tensor& x) : guard_(int32_t(x.get_device_index())) {
    void* stream = nullptr;
    STABLE_TORCH_ERROR_CODE_CHECK(
        aoti_torch_get_current_cuda_stream(int32_t(x.get_device_index()), &stream));
    stream_ = static_cast<cudaStream_t>(stream);
  }
  cudaStream_t stream() const { return stream_; }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
  cudaStream_t stream_;
};

inline Storage storage_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::BFloat16:
      return Storage::kBfloat16;
    case ScalarType::Half:
      return Storage::kHalf;
    default:
      STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float,
                      "the CUDA kernels take float32, bfloat16 and float16");
      return Storage::kFloat;
  }
}

// x, contiguous and of the dtype; x itself where it already is.
inline Tensor contiguous_as(const Tensor& x, ScalarType dtype) {
  const Tensor y = x.scalar_type() == dtype ? x : torch::stable::to(x, dtype);
  return y.is_contiguous() ? y : torch::stable::contiguous(y);
}

// Memory of torch's allocator on the device of `like`, not written. The allocator keeps it for the
// stream, so it may be let go while kernels still read it.
inline Tensor empty_beside(const Tensor& like, std::initializer_list<int64_t> sizes,
                           ScalarType dtype) {
  int64_t strides[8];
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<int64_t>(1, sizes.begin()[d]);
  }
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(
      int64_t(sizes.size()), sizes.begin(), strides, type, aoti_torch_device_type_cuda(),
      int32_t(like.get_device_index()), &handle));
  return Tensor(handle);
}

inline void clear(const Tensor& x, cudaStream_t stream) {
  if (x.numel() == 0) return;
  STD_CUDA_CHECK(
      cudaMemsetAsync(x.mutable_data_ptr(), 0, size_t(x.numel()) * x.element_size(), stream));
}

// The backward of an op whose forward took the gradient: memory for one of its gradients, and what
// scale_grads is to write there.
class ScaledGrad {
 public:
  // unit float32; `again` as UnitGrad has it
  ScaledGrad(const Tensor& unit, ScalarType dtype, const Tensor* again = nullptr)
      : unit_(contiguous_as(unit, ScalarType::Float)), to_(empty_as(unit, dtype)) {
    plan_.unit = static_cast<const float*>(unit_.const_data_ptr());
    if (again) plan_.again = static_cast<const float*>(again->const_data_ptr());
    plan_.count = unit_.numel();
    plan_.to = to_.mutable_data_ptr();
    plan_.storage = storage_of(to_);
  }
  const UnitGrad& plan() const { return plan_; }
  const Tensor& result() const { return to_; }

 private:
  static Tensor empty_as(const Tensor& x, ScalarType dtype) {
    if (x.dim() == 1) return empty_beside(x, {x.size(0)}, dtype);
    if (x.dim() == 2) return empty_beside(x, {x.size(0), x.size(1)}, dtype);
    return empty_beside(x, {x.size(0), x.size(1), x.size(2)}, dtype);
  }

  Tensor unit_, to_;
  UnitGrad plan_ = {};
};

// upstream float32, the first of it counts
inline void scale(const ScaledGrad& first, const ScaledGrad& second, const Tensor& upstream,
                  cudaStream_t stream, const int32_t* skip = nullptr) {
  scale_grads(first.plan(), second.plan(), static_cast<const float*>(upstream.const_data_ptr()),
              skip, stream);
}

}  // namespace cuda
}  // namespace mcr
