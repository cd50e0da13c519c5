#include "cuda/blocks.h"

namespace mcr {
namespace cuda {
namespace {

__global__ void sum_values_kernel(const double* row_values, int64_t rows, float* values) {
  double sum = 0;
  for (int64_t a = threadIdx.x; a < rows; a += kBlockThreads)
    sum += row_values[blockIdx.x * rows + a];
  sum = block_sum(sum);
  if (threadIdx.x == 0) values[blockIdx.x] = float(sum);
}

template <class Out>
__global__ void scale_grad_kernel(const float* unit, const float* upstream, const float* again,
                                  const int32_t* skip, int64_t count, Out* to) {
  const float factor = upstream[0];
  const bool recomputed = again != nullptr && *skip == 0;
  for (int64_t i = first_index(); i < count; i += index_step()) {
    assign(to + i, recomputed ? again[i] : unit[i] * factor);
  }
}

}  // namespace

void sum_values(const double* row_values, int64_t subsets, int64_t rows, float* values,
                cudaStream_t stream) {
  sum_values_kernel<<<unsigned(subsets), kBlockThreads, 0, stream>>>(row_values, rows, values);
}

void scale_grad(const float* unit, const float* upstream, const float* again, const int32_t* skip,
                int64_t count, Storage storage, void* to, cudaStream_t stream) {
  if (count == 0) return;
  with_storage(storage, [&](auto zero) {
    using Out = decltype(zero);
    scale_grad_kernel<Out><<<blocks_for(count), kBlockThreads, 0, stream>>>(
        unit, upstream, again, skip, count, static_cast<Out*>(to));
  });
}

}  // namespace cuda
}  // namespace mcr
