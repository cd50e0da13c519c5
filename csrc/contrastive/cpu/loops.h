// The contrastive losses on a CPU: tiles of the upper triangle of the similarities, each entry of
// which serves its row and its column.
#pragma once

#include "contrastive/cpu/kernels.h"
#include "contrastive/similarity.h"
#include "core/bfloat16.h"

namespace mcr {
namespace MCR_ISA {

// Raises the maxima of a tile's rows and columns to what it holds, and rescales the columns' sums.
template <class T>
inline void raise_maxima(const SimilarityStripe<T>& stripe, int64_t begin, int64_t end,
                         const ExpSums<T>& sums, T* col_max) {
  for (int64_t j = begin; j < end; ++j) col_max[j - begin] = sums.max[stripe.first + j];
  for (int64_t r = 0; r < stripe.rows; ++r) {
    Vec<T> top = splat(kNoMax<T>);
    const int64_t low = sums.enter[stripe.first + r] - stripe.first;
    RowTeam<T>::for_columns(low > begin ? low : begin, end, [&](int64_t j, auto lanes) {
      const Vec<T> d = lanes.select(row_of(stripe, r).at(j), splat(kNoMax<T>));
      top = vmax(d, top);
      store(col_max + j - begin, vmax(d, load(col_max + j - begin)));
    });
    T max = top[0];
    for (int l = 1; l < kWidth<T>; ++l) max = top[l] > max ? top[l] : max;
    sums.row_max[r] = max;
  }
  for (int64_t j = begin; j < end; ++j) {
    const int64_t b = stripe.first + j;
    sums.sum[b] *= double(exp2(splat((sums.max[b] - col_max[j - begin]) * stripe.scale))[0]);
    sums.max[b] = col_max[j - begin];
  }
}

// One tile, columns [begin, end): adds the exponentials of the columns b >= enter[a] to row a of
// the tile's own row sums and to column b of the batch's. One entry of the triangle serves both.
template <bool kRunningMax, class T>
void exp_sums(const SimilarityStripe<T>& stripe, int64_t begin, int64_t end,
              const ExpSums<T>& sums) {
  T col_max[kTileColumns];
  T col_sum[kTileColumns] = {};  // a stripe's worth; float64 takes over between stripes
  if (kRunningMax) raise_maxima(stripe, begin, end, sums, col_max);
  for (int64_t r = 0; r < stripe.rows; ++r) {
    Vec<T> total = {};
    const T max = kRunningMax ? sums.row_max[r] : T(1);
    const int64_t low = sums.enter[stripe.first + r] - stripe.first;
    RowTeam<T>::for_columns(low > begin ? low : begin, end, [&](int64_t j, auto lanes) {
      const Vec<T> d = row_of(stripe, r).at(j);
      const Vec<T> for_row = lanes.keep(exp2((d - max) * stripe.scale));
      Vec<T> for_col = for_row;
      if (kRunningMax) {
        for_col = lanes.keep(exp2((d - load(col_max + j - begin)) * stripe.scale));
      }
      total += for_row;
      store(col_sum + j - begin, load(col_sum + j - begin) + for_col);
    });
    sums.row_sum[r] = sum(total);
  }
  for (int64_t j = begin; j < end; ++j) sums.sum[stripe.first + j] += double(col_sum[j - begin]);
}

// Sums in eight lanes: float64, as squares of float32 embeddings may pass float32's range.
template <class T>
inline double dot(const T* x, const T* y, int64_t width) {
  double lanes[8] = {};
  int64_t d = 0;
  for (; d + 8 <= width; d += 8) {
    for (int l = 0; l < 8; ++l) lanes[l] += double(x[d + l]) * double(y[d + l]);
  }
  for (; d < width; ++d) lanes[d % 8] += double(x[d]) * double(y[d]);
  return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
         ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

// z_a = x_order[a] / max(|x|, 1e-12) for sorted rows a in [begin, end), and the clamped norm.
template <class T>
void normalize_rows(const T* x, const int64_t* order, int64_t begin, int64_t end, int64_t width,
                    T* z, T* norm) {
  for (int64_t a = begin; a < end; ++a) {
    const T* from = x + order[a] * width;
    T* to = z + a * width;
    const T length = T(__builtin_sqrt(dot(from, from, width)));
    norm[a] = length < kMinNorm<T> ? kMinNorm<T> : length;  // NaN stays
    const T scale = T(1) / norm[a];
    for (int64_t d = 0; d < width; ++d) to[d] = from[d] * scale;
  }
}

// grad_x = factor / |x| * (g - z (z . g)), back in the order of the input: the normalisation's
// Jacobian, without the projection where the norm was clamped.
template <class T>
void project_rows(const T* g, const T* z, const T* norm, const int64_t* order, int64_t begin,
                  int64_t end, int64_t width, T factor, T* grad_x) {
  for (int64_t a = begin; a < end; ++a) {
    const T* from = g + a * width;
    const T* unit = z + a * width;
    T* to = grad_x + order[a] * width;
    const T along = norm[a] == kMinNorm<T> ? T(0) : T(dot(from, unit, width));
    const T scale = factor / norm[a];
    for (int64_t d = 0; d < width; ++d) to[d] = scale * (from[d] - along * unit[d]);
  }
}

template <class T>
constexpr SimilarityKernels<T> kSimilarityKernels = {normalize_rows<T>, exp_sums<false, T>,
                                                     exp_sums<true, T>, project_rows<T>,
                                                     to_bfloat16,       add_bfloat16};

}  // namespace MCR_ISA
}  // namespace mcr
