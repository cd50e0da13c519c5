// What the two kernels of a small contrastive batch share: a block of either has kRows rows.
#pragma once

#include <type_traits>

#include "contrastive/cuda/row_scale.h"
#include "contrastive/cuda/small.h"
#include "contrastive/nt_xent.h"
#include "contrastive/sup_con.h"
#include "cuda/blocks.h"

namespace mcr {
namespace cuda {

using WarpRow = DeviceTeam<32, 1>;
constexpr int kWarps = kBlockThreads / 32;
constexpr int kRows = kWarps;  // of a block: a warp each, outside of the products

__device__ inline int warp() { return int(threadIdx.x) / 32; }
__device__ inline int lane() { return int(threadIdx.x) % 32; }

// Known to all of its lanes.
template <class T>
__device__ __forceinline__ T sum_of_warp(T x) {
#pragma unroll
  for (int d = 16; d > 0; d /= 2) x += __shfl_xor_sync(0xffffffffu, x, d);
  return x;
}

template <class X>
struct alignas(4 * sizeof(X)) Four {
  X x[4];
};

// Elements d .. d + 3 of a row, 0 outside of it and where there is none.
template <bool kPieces, class X>
__device__ __forceinline__ float4 load_four(const X* row, int d, int width) {
  if (row == nullptr || d >= width) return make_float4(0, 0, 0, 0);
  if constexpr (kPieces) {
    const Four<X> four = *reinterpret_cast<const Four<X>*>(row + d);
    return make_float4(to_float(four.x[0]), to_float(four.x[1]), to_float(four.x[2]),
                       to_float(four.x[3]));
  } else {
    const auto at = [&](int e) { return d + e < width ? to_float(row[d + e]) : 0.0f; };
    return make_float4(at(0), at(1), at(2), at(3));
  }
}
__device__ __forceinline__ float4 operator*(float4 x, float y) {
  return make_float4(x.x * y, x.y * y, x.z * y, x.w * y);
}
__device__ __forceinline__ float dot(float4 a, float4 b, float sum) {
  sum = fmaf(a.x, b.x, sum);
  sum = fmaf(a.y, b.y, sum);
  sum = fmaf(a.z, b.z, sum);
  return fmaf(a.w, b.w, sum);
}
__device__ __forceinline__ void add_scaled(float4& to, float factor, float4 x) {
  to.x = fmaf(factor, x.x, to.x);
  to.y = fmaf(factor, x.y, to.y);
  to.z = fmaf(factor, x.z, to.z);
  to.w = fmaf(factor, x.w, to.w);
}

// Row a of the batch: what it holds, or null if it is absent; and its label.
template <class X>
struct Row {
  const X* x;
  int64_t code;

  __device__ Row(const SmallBatch& batch, int a) : x(nullptr), code(0) {
    if (a >= batch.rows) return;
    const int m = a / batch.rows_of_part, i = a % batch.rows_of_part;
    code = batch.labels[i];
    if (batch.present && !batch.present[i * batch.parts + m]) return;
    x = static_cast<const X*>(batch.x[m]) + int64_t(i) * batch.width;
  }
};

// f(a zero of the storage, whether in pieces)
template <class F>
void with_kernel(const SmallBatch& batch, const F& f) {
  with_storage(batch.storage, [&](auto zero) {
    batch.in_pieces ? f(zero, std::true_type()) : f(zero, std::false_type());
  });
}

inline unsigned row_blocks(const SmallBatch& batch) {
  return unsigned((batch.rows + kRows - 1) / kRows);
}

}  // namespace cuda
}  // namespace mcr
