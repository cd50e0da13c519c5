// The second kernel of a small contrastive batch: rows of H from what the first one left, their
// products with the rows of the batch, and the loss. Without the gradient the loss alone.
#include "contrastive/cuda/small_rows.h"

namespace mcr {
namespace cuda {
namespace {

// kWide columns of the embeddings, a thread four of them, from kDeep rows at a time.
constexpr int kWide = 128, kDeep = 256;
static_assert(kWide == 4 * 32 && kDeep == kBlockThreads, "");

// How many terms the mean has, known to all threads. A block that `writes` leaves the loss.
__device__ inline double add_up(const SmallBatch& batch, bool writes, float* to) {
  __shared__ double terms;
  double loss = 0, count = 0;
  for (int a = int(threadIdx.x); a < batch.rows; a += kBlockThreads) {
    const int32_t positives = batch.positives[a];
    count += batch.over_pairs ? double(positives) : double(positives > 0);
    if (writes) loss += batch.results.loss[a];
  }
  count = block_sum(count);
  if (writes) loss = block_sum(loss);
  if (threadIdx.x == 0) {
    terms = count;
    if (writes) *to = count > 0 ? float(loss * kLn2 / count) : 0.0f;
  }
  __syncthreads();
  return terms;
}

__global__ void __launch_bounds__(kBlockThreads)
    small_loss_kernel(const __grid_constant__ SmallBatch batch, float* loss) {
  add_up(batch, true, loss);
}

// Of the second kernel: rows b of the batch as they meet the block's rows, or the warps' sums.
template <class X>
struct Panel {
  union {
    struct {
      alignas(16) float h[kRows][kDeep];  // H_ab / |x'_b|
      const X* rows[kDeep];
      int64_t codes[kDeep];
      float factor[kDeep];
    } b;
    alignas(16) float sums[kWarps][kRows][kWide];
  };
};

// A warp's row of H and the rows first .. first + kDeep - 1. Of this lane's b, z_a . sum_b H_ab
// z_b: the gradient's part along z_a without the whole of it. It has the entries of H as they are
// rounded, and more digits, for the sum may cancel.
template <class X>
__device__ __forceinline__ double make_weights(Panel<X>& panel, const SmallBatch& batch, int a,
                                               const Row<X>& own, int64_t count, int first) {
  const int rows = batch.rows;
  const RowWeights<float> weights = {batch.results.weight, batch.results.max,
                                     batch.results.log2_sum};
  const float scale = float(kLog2e / batch.temperature);
  const RowWeight<float> of_row(weights, a < rows ? a : 0, scale);
  double along = 0;
#pragma unroll 1
  for (int n = lane(); n < kDeep; n += 32) {
    const int b = first + n;
    float h = 0;
    if (b < rows && b != a && own.x != nullptr && panel.b.rows[n] != nullptr) {
      const bool positive = panel.b.codes[n] == own.code;
      const float d = batch.similarities[a * rows + b];
      h = batch.over_pairs ? NtXent::weight<float>(of_row, weights, b, d, positive, count)
                           : SupCon::weight<float>(of_row, weights, b, d, positive, count);
      h *= batch.inverse[b];
      along += double(h) * double(d / batch.inverse[b]);
    }
    panel.b.h[warp()][n] = h;
  }
  return along;
}

// sums[r] += a warp's share of H_rb x'_b, of this lane's four columns from d on.
template <bool kPieces, class X>
__device__ __forceinline__ void multiply_panel(const Panel<X>& panel, int count, int d, int width,
                                               float4 (&sums)[kRows]) {
#pragma unroll 1
  for (int n = 4 * warp(); n < count; n += 4 * kWarps) {
    float4 x[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      x[e] = load_four<kPieces>(panel.b.rows[n + e], d, width) * panel.b.factor[n + e];
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const float4 h = *reinterpret_cast<const float4*>(&panel.b.h[r][n]);
      add_scaled(sums[r], h.x, x[0]);
      add_scaled(sums[r], h.y, x[1]);
      add_scaled(sums[r], h.z, x[2]);
      add_scaled(sums[r], h.w, x[3]);
    }
  }
}

// Column d of a warp's row: the sums of all warps in order, projected, for a mean.
template <bool kPieces, class X>
__device__ __forceinline__ void store_gradient(const Panel<X>& panel, const SmallBatch& batch,
                                               int a, const X* own, float along, float factor,
                                               int d, float* to) {
  float4 g = make_float4(0, 0, 0, 0);
#pragma unroll
  for (int w = 0; w < kWarps; ++w) {
    add_scaled(g, 1, *reinterpret_cast<const float4*>(&panel.sums[w][warp()][4 * lane()]));
  }
  const float power = batch.factor[a], inverse = batch.inverse[a];
  const float inverse_norm = inverse * power;
  // no projection where the norm was clamped
  const bool clamped = inverse_norm == kMaxInverseNorm;
  add_scaled(g, clamped ? 0 : -along, load_four<kPieces>(own, d, batch.width) * power * inverse);
  // without terms the gradient is 0, whatever the rows hold
  g = factor == 0 || own == nullptr ? make_float4(0, 0, 0, 0) : g * (factor * inverse_norm);
  float* row = to + int64_t(a) * batch.width;
  if constexpr (kPieces) {
    if (d < batch.width) *reinterpret_cast<float4*>(row + d) = g;
  } else {
    const float all[] = {g.x, g.y, g.z, g.w};
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      if (d + e < batch.width) row[d + e] = all[e];
    }
  }
}

template <class X, bool kPieces>
__global__ void __launch_bounds__(kBlockThreads)
    small_gradient_kernel(const __grid_constant__ SmallBatch batch, float* loss, float* grad) {
  __shared__ Panel<X> panel;
  const int rows = batch.rows, a = int(blockIdx.x) * kRows + warp();
  const int d = int(blockIdx.y) * kWide + 4 * lane();
  const double terms = add_up(batch, blockIdx.x == 0 && blockIdx.y == 0, loss);
  const float factor = terms > 0 ? float(1 / (terms * batch.temperature)) : 0.0f;
  const Row<X> own(batch, a);
  double along = 0;
  float4 sums[kRows];
#pragma unroll
  for (int r = 0; r < kRows; ++r) sums[r] = make_float4(0, 0, 0, 0);
  const int64_t count = a < rows ? batch.positives[a] : 0;
  for (int first = 0; first < rows; first += kDeep) {
    const int b = first + int(threadIdx.x);
    const Row<X> other(batch, b);
    panel.b.rows[threadIdx.x] = other.x;
    panel.b.codes[threadIdx.x] = other.code;
    panel.b.factor[threadIdx.x] = b < rows ? batch.factor[b] : 0;
    __syncthreads();
    along += make_weights(panel, batch, a, own, count, first);
    __syncthreads();
    multiply_panel<kPieces>(panel, rows - first < kDeep ? rows - first : kDeep, d, batch.width,
                            sums);
    __syncthreads();
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    *reinterpret_cast<float4*>(&panel.sums[warp()][r][4 * lane()]) = sums[r];
  }
  along = sum_of_warp(along);
  __syncthreads();
  if (a < rows) store_gradient<kPieces>(panel, batch, a, own.x, along, factor, d, grad);
}

}  // namespace

void small_loss(const SmallBatch& batch, float* loss, cudaStream_t stream) {
  small_loss_kernel<<<1, kBlockThreads, 0, stream>>>(batch, loss);
}

void small_gradient(const SmallBatch& batch, float* loss, float* grad, cudaStream_t stream) {
  const unsigned layers = unsigned(batch.width > kWide ? (batch.width + kWide - 1) / kWide : 1);
  with_kernel(batch, [&](auto zero, auto pieces) {
    small_gradient_kernel<decltype(zero), decltype(pieces)::value>
        <<<dim3{row_blocks(batch), layers}, kBlockThreads, 0, stream>>>(batch, loss, grad);
  });
}

}  // namespace cuda
}  // namespace mcr
