// Two kernels of a small contrastive batch. A block has kRows rows in either: the first makes their
// similarities to all rows and what is known once they are complete, the second their rows of H and
// the gradient. All arithmetic is float32.
#include <type_traits>

#include "contrastive/cuda/small.h"
#include "contrastive/embedding_rows.h"
#include "contrastive/nt_xent.h"
#include "contrastive/sup_con.h"
#include "cuda/blocks.h"

namespace mcr {
namespace cuda {
namespace {

using WarpRow = DeviceTeam<32, 1>;
constexpr int kWarps = kBlockThreads / 32;
constexpr int kRows = kWarps;  // of a block: a warp each, outside of the products

// The first kernel's tile: kRows rows against kColumns, kDepth of their width at a time, of which
// each warp multiplies a part. A warp reads whole rows; four numbers more a row bring neighbouring
// rows to other banks.
constexpr int kColumns = 64, kDepth = 128, kPitch = kDepth + 4;
constexpr int kSlots = kRows + kColumns, kSlotsOfWarp = kSlots / kWarps;
// The second's: kWide columns of the embeddings, a thread four of them, from kDeep rows at a time.
constexpr int kWide = 128, kDeep = 256;
static_assert(kDepth == 4 * 32 && kWide == 4 * 32 && kDepth == 16 * kWarps && kDeep == 256, "");

__device__ inline int warp() { return int(threadIdx.x) / 32; }
__device__ inline int lane() { return int(threadIdx.x) % 32; }

__device__ inline float sum_of_warp(float x) { return WarpRow::reduce_sum(x); }

template <class X>
struct alignas(4 * sizeof(X)) Piece {
  X x[4];
};

// Elements d .. d + 3 of a row, 0 outside of it and where there is none.
template <bool kPieces, class X>
__device__ __forceinline__ float4 load_four(const X* row, int d, int width) {
  if (row == nullptr || d >= width) return make_float4(0, 0, 0, 0);
  if constexpr (kPieces) {
    const Piece<X> piece = *reinterpret_cast<const Piece<X>*>(row + d);
    return make_float4(to_float(piece.x[0]), to_float(piece.x[1]), to_float(piece.x[2]),
                       to_float(piece.x[3]));
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

// Of the first kernel: rows in slots, those of the block first, then those of the tile's columns.
template <class X>
struct Tile {
  union {
    alignas(16) float x[kSlots][kPitch];
    float sums[kWarps][kRows][kColumns];
    struct {
      int64_t codes[kMaxSmallRows];
      bool there[kMaxSmallRows];
    } batch;
  };
  const X* rows[kSlots];
  float factor[kSlots], inverse[kSlots];
};

// Sums of a warp's part of the products, for every warp, and of the squares of its slots.
template <bool kPieces, class X>
__device__ __forceinline__ void multiply_tile(Tile<X>& tile, int width,
                                              float (&squares)[kSlotsOfWarp]) {
  float4 next[kSlotsOfWarp];
  const auto read = [&](int first) {
#pragma unroll
    for (int n = 0; n < kSlotsOfWarp; ++n) {
      next[n] = load_four<kPieces>(tile.rows[warp() + n * kWarps], first + 4 * lane(), width);
    }
  };
  float sums[4][4] = {};
  const int row = lane() / 16 * 4, column = lane() % 16;
  read(0);
  for (int first = 0; first < width; first += kDepth) {
#pragma unroll
    for (int n = 0; n < kSlotsOfWarp; ++n) {
      const int slot = warp() + n * kWarps;
      const float4 x = next[n] * tile.factor[slot];
      squares[n] = dot(x, x, squares[n]);
      *reinterpret_cast<float4*>(&tile.x[slot][4 * lane()]) = x;
    }
    __syncthreads();
    if (first + kDepth < width) read(first + kDepth);
#pragma unroll
    for (int d = 0; d < kDepth / kWarps; d += 4) {
      const auto at = [&](int slot) {
        return *reinterpret_cast<const float4*>(&tile.x[slot][warp() * (kDepth / kWarps) + d]);
      };
      float4 other[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) other[j] = at(kRows + column + 16 * j);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float4 own = at(row + i);
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[i][j] = dot(own, other[j], sums[i][j]);
      }
    }
    __syncthreads();
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int j = 0; j < 4; ++j) tile.sums[warp()][row + i][column + 16 * j] = sums[i][j];
  }
}

// The squares of rows far from 1 leave the range of float32: such rows are multiplied by a power of
// two first, which rounds nothing. Whether one is found to need it.
template <class X>
__device__ __forceinline__ bool find_scales(Tile<X>& tile, int width, bool first_time,
                                            const float (&squares)[kSlotsOfWarp]) {
#pragma unroll
  for (int n = 0; n < kSlotsOfWarp; ++n) {
    const float square = sum_of_warp(squares[n]);
    if (lane() == 0) tile.inverse[warp() + n * kWarps] = square;
  }
  __syncwarp();
  bool again = false;
#pragma unroll 1
  for (int slot = warp(); slot < kSlots; slot += kWarps) {
    const X* row = tile.rows[slot];
    const float square = tile.inverse[slot];
    float factor = tile.factor[slot];
    if (first_time && row != nullptr && !(square > 0x1p-80f && square < 0x1p100f)) {
      factor =
          power_of_two(-row_exponent<WarpRow>(width, [&](int64_t d) { return to_float(row[d]); }));
      again = true;
    }
    __syncwarp();
    if (lane() != 0) continue;
    tile.factor[slot] = factor;
    tile.inverse[slot] = row_scale(square, factor).inverse;
  }
  return again;
}

// d_ab of the block's rows and the columns first .. first + kColumns - 1.
template <bool kPieces, class X>
__device__ __forceinline__ void make_similarities(Tile<X>& tile, const SmallBatch& batch,
                                                  int first_row, int first) {
  const int rows = batch.rows;
  for (int slot = int(threadIdx.x); slot < kSlots; slot += kBlockThreads) {
    if (slot < kRows && first > 0) continue;  // the block's own rows stay
    tile.rows[slot] = Row<X>(batch, slot < kRows ? first_row + slot : first + slot - kRows).x;
    tile.factor[slot] = 1;
  }
  bool again = true;
  for (bool first_time = true; again; first_time = false) {
    __syncthreads();
    float squares[kSlotsOfWarp] = {};
    multiply_tile<kPieces>(tile, batch.width, squares);
    again = __syncthreads_or(find_scales(tile, batch.width, first_time, squares));
  }
  for (int at = int(threadIdx.x); at < kRows * kColumns; at += kBlockThreads) {
    const int r = at / kColumns, c = at % kColumns, a = first_row + r, b = first + c;
    if (a >= rows || b >= rows) continue;
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) sum += tile.sums[w][r][c];
    // (a, b) and (b, a) are the same bits
    batch.similarities[a * rows + b] = sum * (tile.inverse[r] * tile.inverse[kRows + c]);
  }
  __syncthreads();
}

// What is known of a warp's row when its similarities are complete.
template <class X>
__device__ __forceinline__ void finish_row(const Tile<X>& tile, const SmallBatch& batch, int a) {
  const RowResults<float>& to = batch.results;
  if (WarpRow::leads()) {
    batch.factor[a] = tile.factor[warp()];
    batch.inverse[a] = tile.inverse[warp()];
  }
  if (tile.rows[warp()] == nullptr) {
    if (!WarpRow::leads()) return;
    to.loss[a] = 0;
    to.weight[a] = to.max[a] = to.log2_sum[a] = to.c[a] = 0;
    batch.positives[a] = 0;
    return;
  }
  const int rows = batch.rows;
  const LabelledColumns<WarpRow> columns = {tile.batch.codes, tile.batch.there, a, rows};
  const SimilarityRow<float> row(batch.similarities + a * rows);
  const float scale = float(kLog2e / batch.temperature);
  const int64_t count = columns.count_positives();
  if (batch.over_pairs) {
    NtXent::row<WarpRow>(row, columns, count, scale, to);
  } else {
    SupCon::row<WarpRow>(row, columns, count, scale, to);
  }
  if (WarpRow::leads()) batch.positives[a] = int32_t(count);
}

template <class X, bool kPieces>
__global__ void __launch_bounds__(kBlockThreads, 2)
    small_rows_kernel(const __grid_constant__ SmallBatch batch) {
  __shared__ Tile<X> tile;
  const int rows = batch.rows, first_row = int(blockIdx.x) * kRows;
  for (int first = 0; first < rows; first += kColumns) {
    make_similarities<kPieces>(tile, batch, first_row, first);
  }
  for (int b = int(threadIdx.x); b < rows; b += kBlockThreads) {
    const Row<X> row(batch, b);
    tile.batch.codes[b] = row.code;
    tile.batch.there[b] = row.x != nullptr;
  }
  __syncthreads();
  if (first_row + warp() < rows) finish_row(tile, batch, first_row + warp());
}

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

// A warp's row of H and the rows first .. first + kDeep - 1; sum_b H_ab d_ab of this lane's b.
template <class X>
__device__ __forceinline__ float make_weights(Panel<X>& panel, const SmallBatch& batch, int a,
                                              const Row<X>& own, int64_t count, int first) {
  const int rows = batch.rows;
  const RowWeights<float> weights = {batch.results.weight, batch.results.max,
                                     batch.results.log2_sum};
  const float scale = float(kLog2e / batch.temperature);
  const RowWeight<float> of_row(weights, a < rows ? a : 0, scale);
  float along = 0;
#pragma unroll 1
  for (int n = lane(); n < kDeep; n += 32) {
    const int b = first + n;
    float h = 0;
    if (b < rows && b != a && own.x != nullptr && panel.b.rows[n] != nullptr) {
      const bool positive = panel.b.codes[n] == own.code;
      const float d = batch.similarities[a * rows + b];
      h = batch.over_pairs ? NtXent::weight<float>(of_row, weights, b, d, positive, count)
                           : SupCon::weight<float>(of_row, weights, b, d, positive, count);
      along = fmaf(h, d, along);
      h *= batch.inverse[b];
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
  float along = 0;
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

template <class F>
void with_kernel(const SmallBatch& batch, const F& f) {
  with_storage(batch.storage, [&](auto zero) {
    batch.in_pieces ? f(zero, std::true_type()) : f(zero, std::false_type());
  });
}

unsigned row_blocks(const SmallBatch& batch) { return unsigned((batch.rows + kRows - 1) / kRows); }

}  // namespace

void small_rows(const SmallBatch& batch, cudaStream_t stream) {
  with_kernel(batch, [&](auto zero, auto pieces) {
    small_rows_kernel<decltype(zero), decltype(pieces)::value>
        <<<row_blocks(batch), kBlockThreads, 0, stream>>>(batch);
  });
}

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
