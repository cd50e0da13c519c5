// What every launcher needs of stable-ABI tensors and memory.
#pragma once

#include <memory>

#include "core/tensors.h"

namespace mcr {

// f(T()) for the type of the arithmetic: float32, except that float64 stays float64.
template <class F>
auto with_arithmetic(bool is_double, const F& f) {
  return is_double ? f(double()) : f(float());
}

inline bool is_double(const Tensor& x) { return x.scalar_type() == ScalarType::Double; }

inline Tensor empty_cpu(IntHeaderOnlyArrayRef sizes, ScalarType dtype) {
  return empty_on(aoti_torch_device_type_cpu(), 0, sizes, dtype);
}

// The number that a tensor of one holds.
template <class T>
T number_of(const Tensor& x) {
  return *data<const T>(contiguous_as(x, scalar_type_of<T>()));
}

// Workspace memory that a thread keeps from one call to the next, at least `bytes` (workspace.cpp).
// A training step asks for the same blocks every time; giving them back to the system in between
// costs more than a small batch's arithmetic, in page faults.
void* take_workspace(size_t bytes);
void give_back_workspace(void* block);  // by the thread that took it; null is nothing

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

// Fewer numbers than these are not worth waking a thread for: of a row loop, which takes about 10
// us for so many, and of a copy.
constexpr int64_t kGrain = 1 << 14, kCopyGrain = 1 << 16;

// The same counted in items of `each` numbers.
inline int64_t grain_of(int64_t numbers, int64_t each) {
  return std::max<int64_t>(1, numbers / std::max<int64_t>(1, each));
}

// How many parts to cut work into: one per thread, fewer when a part would be too small to be worth
// waking a thread for. Results are added up part by part, so they repeat for the same thread count.
inline int64_t part_count(int64_t work) {
  const int64_t threads = torch::stable::get_num_threads();
  return std::max<int64_t>(1, std::min<int64_t>(threads, work / kGrain));
}

template <class F>
void for_each_range(int64_t count, int64_t grain, const F& f) {
  if (count <= grain) {
    if (count > 0) f(int64_t{0}, count);
    return;
  }
  torch::stable::parallel_for(0, count, grain, f);
}

// f(i) for i of 0 .. count - 1.
template <class F>
void for_each(int64_t count, int64_t grain, const F& f) {
  for_each_range(count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) f(i);
  });
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
  const T* from = data<const T>(unit);
  T* to = data<T>(out);
  for_each_range(unit.numel(), kCopyGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[i] = from[i] * factor;
  });
  return dtype == out.scalar_type() ? out : torch::stable::to(out, dtype);
}

}  // namespace mcr
