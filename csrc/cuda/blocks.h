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

__device__ inline bool all_equal(const float* x, int64_t count) {
  bool equal = true;
  for (int64_t n = 0; n < count; ++n) equal &= x[n] == x[0];
  return equal;
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ inline float to_float(__half x) { return __half2float(x); }
__device__ inline void assign(float* to, float x) { *to = x; }
__device__ inline void assign(__nv_bfloat16* to, float x) { *to = __float2bfloat16_rn(x); }
__device__ inline void assign(__half* to, float x) { *to = __float2half_rn(x); }

__device__ inline void assign_as(Storage storage, void* to, int64_t at, float x) {
  if (storage == Storage::kFloat) return assign(static_cast<float*>(to) + at, x);
  if (storage == Storage::kHalf) return assign(static_cast<__half*>(to) + at, x);
  assign(static_cast<__nv_bfloat16*>(to) + at, x);
}

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
template <int kThreads = kBlockThreads, class T, class Op>
__device__ T block_reduce(T x, const Op& op) {
  constexpr int kWarps = kThreads / 32;
  __shared__ T warps[kWarps];
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x = op(x, __shfl_xor_sync(0xffffffffu, x, d));
  __syncthreads();  // the reduction before this one has been read
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x >= 32) return T(0);
  x = warps[threadIdx.x % kWarps];
#pragma unroll
  for (int d = kWarps / 2; d > 0; d /= 2) x = op(x, __shfl_xor_sync(0xffffffffu, x, d));
  return threadIdx.x == 0 ? x : T(0);
}
template <int kThreads = kBlockThreads>
__device__ double block_sum(double x) {
  return block_reduce<kThreads>(x, [](double a, double b) { return a + b; });
}

// Where one block has all of a sum, it is as large as there are: the sum waits for memory.
constexpr int kSumThreads = 1024;

// The sum of f(0) .. f(count - 1) by a block of kSumThreads, known to thread 0. A thread has
// kAtOnce sums, so that what f reads for them is under way together; f may be asked for one n
// twice.
template <int kAtOnce, class F>
__device__ double sum_over(int64_t count, const F& f) {
  double sums[kAtOnce] = {};
  for (int64_t n = threadIdx.x; n < count; n += kAtOnce * kSumThreads) {
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const bool counts = n + k * kSumThreads < count;
      const double x = f(counts ? n + k * kSumThreads : n);
      sums[k] += counts ? x : 0.0;
    }
  }
#pragma unroll
  for (int k = 1; k < kAtOnce; ++k) sums[0] += sums[k];
  return block_sum<kSumThreads>(sums[0]);
}

}  // namespace cuda
}  // namespace mcr
