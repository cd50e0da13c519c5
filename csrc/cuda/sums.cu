#include "cuda/blocks.h"

namespace mcr {
namespace cuda {
namespace {

constexpr int kAtOnce = 8;  // reads of a thread under way
// Rows that one block adds up; more than a few times as many take several, and a second stage.
constexpr int64_t kPiece = kAtOnce * kSumThreads;
constexpr int64_t kMaxPieces = 4;

// The sum of a piece takes the place of its first number.
__global__ void __launch_bounds__(kSumThreads)
    sum_pieces_kernel(double* row_values, int64_t rows, const int32_t* skip) {
  if (is_set(skip)) return;
  const int64_t first = blockIdx.x * kPiece, left = rows - first;
  double* piece = row_values + blockIdx.y * rows + first;
  const double sum =
      sum_over<kAtOnce>(left < kPiece ? left : kPiece, [&](int64_t n) { return piece[n]; });
  if (threadIdx.x == 0) *piece = sum;
}

// A block has a subset: `count` numbers, `step` apart.
__global__ void __launch_bounds__(kSumThreads)
    sum_values_kernel(const double* row_values, int64_t rows, int64_t count, int64_t step,
                      float* first, float* others, const int32_t* skip, const float* factors) {
  if (is_set(skip)) return;
  const double* mine = row_values + blockIdx.x * rows;
  const double sum = sum_over<kAtOnce>(count, [&](int64_t n) { return mine[n * step]; });
  if (threadIdx.x != 0) return;
  const bool poisoned = factors && isnan(factors[blockIdx.x]);
  *(blockIdx.x == 0 ? first : others + (blockIdx.x - 1)) = poisoned ? NAN : float(sum);
}

// Which storage it is, is asked for each number: reads and writes are what this waits for.
__device__ void scale(const UnitGrad& grad, float factor, bool recomputed) {
  for (int64_t i = first_index(); i < grad.count; i += index_step()) {
    assign_as(grad.storage, grad.to, i, recomputed ? grad.again[i] : grad.unit[i] * factor);
  }
}

__global__ void scale_grads_kernel(const UnitGrad first, const UnitGrad second,
                                   const float* upstream, const int32_t* skip) {
  const bool recomputed = skip != nullptr && *skip == 0;
  const float factor = upstream[0];
  scale(first, factor, recomputed);
  scale(second, factor, recomputed);
}

// What is left of rows when those of a piece have been added up, if they are so many.
struct Pieces {
  int64_t count, step;
};
Pieces in_pieces(double* row_values, int64_t subsets, int64_t rows, const int32_t* skip,
                 cudaStream_t stream) {
  if (rows <= kMaxPieces * kPiece) return {rows, 1};
  const int64_t count = (rows + kPiece - 1) / kPiece;
  const dim3 grid{unsigned(count), unsigned(subsets)};
  sum_pieces_kernel<<<grid, kSumThreads, 0, stream>>>(row_values, rows, skip);
  return {count, kPiece};
}

}  // namespace

void sum_values(double* row_values, int64_t subsets, int64_t rows, float* first, float* others,
                cudaStream_t stream, const int32_t* skip, const float* factors) {
  const Pieces pieces = in_pieces(row_values, subsets, rows, skip, stream);
  sum_values_kernel<<<unsigned(subsets), kSumThreads, 0, stream>>>(
      row_values, rows, pieces.count, pieces.step, first, others, skip, factors);
}

void scale_grads(const UnitGrad& first, const UnitGrad& second, const float* upstream,
                 const int32_t* skip, cudaStream_t stream) {
  const int64_t count = first.count > second.count ? first.count : second.count;
  if (count == 0) return;
  scale_grads_kernel<<<blocks_for(count), kBlockThreads, 0, stream>>>(first, second, upstream,
                                                                      skip);
}

}  // namespace cuda
}  // namespace mcr
