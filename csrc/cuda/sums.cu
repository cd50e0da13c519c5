#include "cuda/blocks.h"

namespace mcr {
namespace cuda {
namespace {

constexpr int kAtOnce = 8;  // reads of a thread under way
// Rows that one block adds up; more than a few times as many take several, and a second stage.
constexpr int64_t kPiece = kAtOnce * kSumThreads;
constexpr int64_t kMaxPieces = 4;

__device__ float mean_or_zero(float sum, float weight) { return weight == 0 ? 0 : sum / weight; }

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

// One block, of `count` numbers, `step` apart, and as many that begin `rows` behind.
__global__ void __launch_bounds__(kSumThreads)
    sum_and_weight_kernel(const double* row_values, int64_t rows, int64_t count, int64_t step,
                          bool mean, float* total, float* weight) {
  const double *values = row_values, *weights = row_values + rows;
  const float sum = float(sum_over<kAtOnce>(count, [&](int64_t n) { return values[n * step]; }));
  const float whole = float(sum_over<kAtOnce>(count, [&](int64_t n) { return weights[n * step]; }));
  if (threadIdx.x != 0) return;
  *total = mean ? mean_or_zero(sum, whole) : sum;
  *weight = whole;
}

template <class Out>
__device__ void scale(const UnitGrad& grad, float factor, bool recomputed) {
  Out* to = static_cast<Out*>(grad.to);
  for (int64_t i = first_index(); i < grad.count; i += index_step()) {
    assign(to + i, recomputed ? grad.again[i] : grad.unit[i] * factor);
  }
}

template <class First, class Second>
__global__ void scale_grads_kernel(const UnitGrad first, const UnitGrad second,
                                   const float* upstream, const int32_t* skip,
                                   const float* weight) {
  const bool recomputed = skip != nullptr && *skip == 0;
  const float factor = weight ? mean_or_zero(upstream[0], *weight) : upstream[0];
  scale<First>(first, factor, recomputed);
  scale<Second>(second, factor, recomputed);
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

void sum_and_weight(double* row_values, int64_t rows, bool mean, float* total, float* weight,
                    cudaStream_t stream) {
  const Pieces pieces = in_pieces(row_values, 2, rows, nullptr, stream);
  sum_and_weight_kernel<<<1, kSumThreads, 0, stream>>>(row_values, rows, pieces.count, pieces.step,
                                                       mean, total, weight);
}

void scale_grads(const UnitGrad& first, const UnitGrad& second, const float* upstream,
                 const int32_t* skip, cudaStream_t stream, const float* weight) {
  const int64_t count = first.count > second.count ? first.count : second.count;
  if (count == 0) return;
  with_storage(first.storage, [&](auto a) {
    with_storage(second.storage, [&](auto b) {
      scale_grads_kernel<decltype(a), decltype(b)>
          <<<blocks_for(count), kBlockThreads, 0, stream>>>(first, second, upstream, skip, weight);
    });
  });
}

}  // namespace cuda
}  // namespace mcr
