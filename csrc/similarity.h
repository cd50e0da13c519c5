// Row algorithms that the contrastive losses share. Rows x are normalised to z = x / max(|x|,
// 1e-12), so a similarity d_ab = z_a . z_b is at most 1, and exponentials are taken relative to
// that bound:
//     2^((d_ab - 1) * log2(e) / temperature) <= 1.
// None of them underflows unless the temperature is very small; then each row keeps the maximum of
// its similarities in place of the 1.
#pragma once

#include "bfloat16.h"
#include "similarity_stripe.h"
#include "vec.h"

namespace mcr {
namespace MCR_ISA {

// F.normalize's
template <class T>
constexpr T kMinNorm = T(1e-12);

// Below any similarity.
template <class T>
constexpr T kNoMax = T(-4);

struct AllLanes {
  template <class V>
  V keep(V x) const {
    return x;
  }
  template <class V>
  V select(V x, V) const {
    return x;
  }
};

// Lanes low <= l < high.
template <class T>
struct SomeLanes {
  Mask<T> kept;
  SomeLanes(int64_t low, int64_t high) {
    constexpr int64_t W = kWidth<T>;
    Mask<T> lane;
    for (int l = 0; l < W; ++l) lane[l] = l;
    kept = (lane >= int(low < 0 ? 0 : low > W ? W : low)) & (lane < int(high > W ? W : high));
  }
  Vec<T> keep(Vec<T> x) const { return kept ? x : Vec<T>{}; }
  Vec<T> select(Vec<T> x, Vec<T> otherwise) const { return kept ? x : otherwise; }
};

// f(column, lanes) for the vectors that hold columns low .. high - 1. Vectors start at multiples of
// their width, so no vector reaches into the columns of another tile.
template <class T, class F>
inline void for_vectors(int64_t low, int64_t high, const F& f) {
  constexpr int W = kWidth<T>;
  for (int64_t j = low / W * W; j < high; j += W) {
    if (j >= low && j + W <= high) {
      f(j, AllLanes());
    } else {
      f(j, SomeLanes<T>(low - j, high - j));
    }
  }
}

// d_ab of row r and the columns j ..
template <class T>
inline Vec<T> similarity(const SimilarityStripe<T>& stripe, int64_t r, int64_t j) {
  return load(stripe.dots + r * stripe.stride + j);
}

// Raises the maxima of a tile's rows and columns to what it holds, and rescales the columns' sums.
template <class T>
inline void raise_maxima(const SimilarityStripe<T>& stripe, int64_t begin, int64_t end,
                         const ExpSums<T>& sums, T* col_max) {
  for (int64_t j = begin; j < end; ++j) col_max[j - begin] = sums.max[stripe.first + j];
  for (int64_t r = 0; r < stripe.rows; ++r) {
    Vec<T> top = splat(kNoMax<T>);
    const int64_t low = sums.enter[stripe.first + r] - stripe.first;
    for_vectors<T>(low > begin ? low : begin, end, [&](int64_t j, auto lanes) {
      const Vec<T> d = lanes.select(similarity(stripe, r, j), splat(kNoMax<T>));
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
    for_vectors<T>(low > begin ? low : begin, end, [&](int64_t j, auto lanes) {
      const Vec<T> d = similarity(stripe, r, j);
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

// weight_a e^s_ab / sum_a + weight_b e^s_ab / sum_b. Without running maxima one exponential serves
// both rows.
template <bool kRunningMax, class T>
inline Vec<T> weighted_exponentials(const SimilarityStripe<T>& stripe, const RowWeights<T>& rows,
                                    int64_t a, int64_t b, Vec<T> d) {
  const Vec<T> weight_b = load(rows.weight + b);
  if (!kRunningMax) return (rows.weight[a] + weight_b) * exp2((d - T(1)) * stripe.scale);
  return rows.weight[a] * exp2((d - rows.max[a]) * stripe.scale) +
         weight_b * exp2((d - load(rows.max + b)) * stripe.scale);
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

}  // namespace MCR_ISA
}  // namespace mcr
