// Kernels of one thread an element: their grids, the dtypes they read, the sum over a block.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

#include "cuda/sums.h"

namespace mcr {
namespace cuda {

constexpr int kBlockThreads = 256;
// Further elements come in the same threads' next round: a grid that has nothing to do is soon
// over.
constexpr int64_t kMaxGrid = 1 << 12;

inline unsigned blocks_for(int64_t count) {
  const int64_t blocks = (count + kBlockThreads - 1) / kBlockThreads;
  return unsigned(blocks < 1 ? 1 : blocks > kMaxGrid ? kMaxGrid : blocks);
}

__device__ inline int64_t first_index() {
  return int64_t(blockIdx.x) * kBlockThreads + threadIdx.x;
}
__device__ inline int64_t index_step() { return int64_t(gridDim.x) * kBlockThreads; }

// Whether a kernel is to return at once; `skip` is null where nobody asks for that.
__device__ inline bool is_set(const int32_t* skip) { return skip && *skip; }

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline void assign(float* to, float x) { *to = x; }
__device__ inline void assign(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }
__device__ inline void assign(__half* to, float x) { *to = __float2half_rn(x); }

template <class F>
void with_storage(Storage storage, const F& f) {
  switch (storage) {
    case Storage::kFloat:
      return f(float());
    case Storage::kBfloat16:
      return f(__nv_bfloat16());
    case Storage::kHalf:
      return f(__half());
  }
}

// One number a thread put together by op(a, b), known to thread 0; 0 to the others.
template <class T, class Op>
__device__ T block_reduce(T x, const Op& op) {
  __shared__ T values[kBlockThreads];
  __syncthreads();  // the reduction before this one has been read
  values[threadIdx.x] = x;
  for (int n = kBlockThreads / 2; n > 0; n /= 2) {
    __syncthreads();
    if (threadIdx.x < n) values[threadIdx.x] = op(values[threadIdx.x], values[threadIdx.x + n]);
  }
  return threadIdx.x == 0 ? values[0] : T(0);
}
__device__ inline double block_sum(double x) {
  return block_reduce(x, [](double a, double b) { return a + b; });
}
__device__ inline float block_max(float x) {
  return block_reduce(x, [](float a, float b) { return fmaxf(a, b); });
}

}  // namespace cuda
}  // namespace mcr
