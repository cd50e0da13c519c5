// What every launcher needs of stable-ABI tensors and memory.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "cpu/workspace.h"

namespace mcr {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// float32, except that float64 stays float64.
inline ScalarType accumulation_type(const Tensor& x) {
  return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

template <class T>
constexpr ScalarType scalar_type_of() {
  return sizeof(T) == sizeof(double) ? ScalarType::Double : ScalarType::Float;
}

// x, contiguous and of the dtype; x itself where it already is, without the dispatcher's
// microsecond.
inline Tensor contiguous_as(const Tensor& x, ScalarType dtype) {
  const Tensor y = x.scalar_type() == dtype ? x : torch::stable::to(x, dtype);
  return y.is_contiguous() ? y : torch::stable::contiguous(y);
}

// A contiguous tensor on the CPU, its memory not written.
inline Tensor empty_cpu(std::initializer_list<int64_t> sizes, ScalarType dtype) {
  int64_t strides[8];
  int64_t stride = 1;
  for (size_t d = sizes.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= std::max<int64_t>(1, sizes.begin()[d]);
  }
  const int32_t type = torch::stable::detail::to<int32_t>(torch::stable::detail::from(dtype));
  AtenTensorHandle handle;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(int64_t(sizes.size()), sizes.begin(),
                                                         strides, type,
                                                         aoti_torch_device_type_cpu(), 0, &handle));
  return Tensor(handle);
}

// Uninitialised memory for whole vectors of any instruction set.
template <class T>
class Buffer {
 public:
  explicit Buffer(int64_t count = 0) { resize(count); }
  void resize(int64_t count) {
    memory_.reset();
    if (count != 0) memory_.reset(static_cast<T*>(take_workspace(size_t(count) * sizeof(T))));
  }
  T* get() const { return memory_.get(); }
  T& operator[](int64_t i) const { return memory_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { give_back_workspace(p); }
  };
  std::unique_ptr<T[], Free> memory_;
};

// How many parts to cut work into: one per thread, fewer when a part would be too small to be worth
// waking a thread for. Results are added up part by part, so they repeat for the same thread count.
inline int64_t part_count(int64_t work, int64_t grain) {
  const int64_t threads = torch::stable::get_num_threads();
  return std::max<int64_t>(1, std::min<int64_t>(threads, work / grain));
}

template <class F>
void for_each_part(int64_t parts, const F& f) {
  if (parts == 1) return f(int64_t{0});
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) f(p);
  });
}

template <class F>
void for_each_range(int64_t count, int64_t grain, const F& f) {
  if (count <= grain) {
    if (count > 0) f(int64_t{0}, count);
    return;
  }
  torch::stable::parallel_for(0, count, grain, f);
}

// How many rows of a divergence go through its two passes together: their tiles, two a row, are to
// stay in L1.
template <class T>
int group_of_rows(int64_t tile) {
  constexpr int64_t kGroupBytes = 1 << 14;
  return int(std::clamp<int64_t>(kGroupBytes / (2 * tile * int64_t(sizeof(T))), 1, 8));
}

// unit * factor, in `dtype`: the backward of an op whose forward took the gradient.
template <class T>
Tensor scaled(const Tensor& given, T factor, ScalarType dtype) {
  const Tensor unit = contiguous_as(given, scalar_type_of<T>());
  const Tensor out = torch::stable::empty_like(unit);
  const T* from = unit.const_data_ptr<T>();
  T* to = out.mutable_data_ptr<T>();
  for_each_range(unit.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = from[i] * factor;
  });
  return dtype == out.scalar_type() ? out : torch::stable::to(out, dtype);
}

}  // namespace mcr
