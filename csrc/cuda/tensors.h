// What every CUDA launcher needs of stable-ABI tensors, the current stream and launches.
#pragma once

#include <cuda_runtime_api.h>
#include <torch/csrc/stable/accelerator.h>

#include "core/tensors.h"
#include "cuda/sums.h"

namespace mcr {
namespace cuda {

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

// Memory of torch's allocator on the device of `like`, not written. The allocator keeps it for the
// stream, so it may be let go while kernels still read it.
inline Tensor empty_beside(const Tensor& like, IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
  return empty_on(aoti_torch_device_type_cuda(), int32_t(like.get_device_index()), sizes, dtype);
}

inline void clear(const Tensor& x, cudaStream_t stream) {
  if (x.numel() == 0) return;
  STD_CUDA_CHECK(cudaMemsetAsync(data<void>(x), 0, size_t(x.numel()) * x.element_size(), stream));
}

// The backward of an op whose forward took the gradient: memory for one of its gradients, and what
// scale_grads is to write there.
class ScaledGrad {
 public:
  // unit float32; `again` as UnitGrad has it
  ScaledGrad(const Tensor& unit, ScalarType dtype, const Tensor* again = nullptr)
      : unit_(contiguous_as(unit, ScalarType::Float)),
        to_(empty_beside(unit, unit.sizes(), dtype)) {
    plan_.unit = data<const float>(unit_);
    if (again) plan_.again = data<const float>(*again);
    plan_.count = unit_.numel();
    plan_.to = data<void>(to_);
    plan_.storage = storage_of(to_);
  }
  const UnitGrad& plan() const { return plan_; }
  const Tensor& result() const { return to_; }

 private:
  Tensor unit_, to_;
  UnitGrad plan_ = {};
};

}  // namespace cuda
}  // namespace mcr
