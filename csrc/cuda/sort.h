// torch's stable sort.
#pragma once

#include <array>
#include <tuple>

#include "cuda/tensors.h"

namespace mcr {
namespace cuda {

// [R] -> the values in ascending order and where they stood; equal ones keep their order.
inline std::tuple<Tensor, Tensor> stable_sort(const Tensor& x) {
  const std::optional<bool> stable = true;
  std::array<StableIValue, 4> stack{
      torch::stable::detail::from(x), torch::stable::detail::from(stable),
      torch::stable::detail::from(int64_t{0}), torch::stable::detail::from(false)};
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::sort", "stable", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

}  // namespace cuda
}  // namespace mcr
