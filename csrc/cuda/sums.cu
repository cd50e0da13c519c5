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

template <class Out>
__device__ void scale(const UnitGrad& grad, float factor, bool recomputed) {
  Out* to = static_cast<Out*>(grad.to);
  for (int64_t i = first_index(); i < grad.count; i += index_step()) {
    assign(to + i, recomputed ? grad.again[i] : grad.unit[i] * factor);
  }
}

template <class First, class Second>
__global__ void scale_grads_kernel(const UnitGrad first, const UnitGrad second,
                                   const float* upstream, const int32_t* skip) {
  const bool recomputed = skip != nullptr && *skip == 0;
  scale<First>(first, upstream[0], recomputed);
  scale<Second>(second, upstream[0], recomputed);
}

}  // namespace

void sum_values(double* row_values, int64_t subsets, int64_t rows, float* first, float* others,
                cudaStream_t stream, const int32_t* skip, const float* factors) {
  int64_t count = rows, step = 1;
  if (rows > kMaxPieces * kPiece) {
    step = kPiece;
    count = (rows + kPiece - 1) / kPiece;
    const dim3 grid{unsigned(count), unsigned(subsets)};
    sum_pieces_kernel<<<grid, kSumThreads, 0, stream>>>(row_values, rows, skip);
  }
  sum_values_kernel<<<unsigned(subsets), kSumThreads, 0, stream>>>(row_values, rows, count, step,
                                                                   first, others, skip, factors);
}

void scale_grads(const UnitGrad& first, const UnitGrad& second, const float* upstream,
                 const int32_t* skip, cudaStream_t stream) {
  const int64_t count = first.count > second.count ? first.count : second.count;
  if (count == 0) return;
  with_storage(first.storage, [&](auto a) {
    with_storage(second.storage, [&](auto b) {
      scale_grads_kernel<decltype(a), decltype(b)>
          <<<blocks_for(count), kBlockThreads, 0, stream>>>(first, second, upstream, skip);
    });
  });
}

}  // namespace cuda
}  // namespace mcr
