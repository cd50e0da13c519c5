// The first kernel of a small contrastive batch: the similarities of a block's rows to all rows,
// and what is known once they are complete. All arithmetic is float32.
#include "contrastive/cuda/small_rows.h"

namespace mcr {
namespace cuda {
namespace {

// A tile: kRows rows against kColumns, kDepth of their width at a time, of which
// each warp multiplies a part. A warp reads whole rows; four numbers more a row bring neighbouring
// rows to other banks.
constexpr int kColumns = 64, kDepth = 128, kPitch = kDepth + 4;
constexpr int kSlots = kRows + kColumns, kSlotsOfWarp = kSlots / kWarps;
static_assert(kDepth == 4 * 32 && kDepth == 16 * kWarps, "");

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
      const auto element = [&](int64_t d) { return to_float(row[d]); };
      const float found = power_of_two(-row_exponent<WarpRow>(width, element));
      again |= found != factor;  // a row of the block may be scaled already, and still hold nothing
      factor = found;
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
    to.weight[a] = to.max[a] = to.log2_sum[a] = 0;
    batch.positives[a] = 0;
    return;
  }
  const int rows = batch.rows;
  const LabelledColumns<WarpRow> columns = {tile.batch.codes, tile.batch.there, a, rows};
  const SimilarityRow<float> row{batch.similarities + a * rows};
  const float scale = float(kLog2e / batch.temperature);
  const int64_t count = columns.count_positives();
  if (batch.over_pairs) {
    NtXent::row<WarpRow>(row, columns, count, scale, to);
  } else {
    SupCon::row<WarpRow>(row, columns, count, scale, to);
  }
  if (WarpRow::leads()) batch.positives[a] = int32_t(count);
}

// At most 128 blocks: one a multiprocessor, whatever registers they take.
template <class X, bool kPieces>
__global__ void __launch_bounds__(kBlockThreads)
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

}  // namespace

void small_rows(const SmallBatch& batch, cudaStream_t stream) {
  with_kernel(batch, [&](auto zero, auto pieces) {
    small_rows_kernel<decltype(zero), decltype(pieces)::value>
        <<<row_blocks(batch), kBlockThreads, 0, stream>>>(batch);
  });
}

}  // namespace cuda
}  // namespace mcr
