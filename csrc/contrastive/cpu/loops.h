// The contrastive losses on a CPU: tiles of the upper triangle of the similarities, each entry of
// which serves its row and its column.
#pragma once

#include "contrastive/cpu/kernels.h"
#include "contrastive/cpu/small_products.h"
#include "contrastive/nt_xent.h"
#include "contrastive/sup_con.h"
#include "core/bfloat16.h"

namespace mcr {
namespace MCR_ISA {

template <class T>
MCR_INLINE SimilarityRow<T> row_of(const SimilarityStripe<T>& stripe, int64_t r) {
  return {stripe.dots + r * stripe.stride};
}

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

// Positive pairs of one tile, columns [begin, end), above the diagonal: one similarity serves (a,
// p) and (p, a). Writes the tile's own row sums of sigma [rows], adds the columns' to c [P], and
// returns the summed loss in units of log2.
template <class T>
double nt_xent_pairs(const SimilarityStripe<T>& stripe, int64_t begin, int64_t end,
                     const RowWeights<T>& rows, T* row_c, double* c) {
  T col_c[kTileColumns] = {};
  double loss = 0;
  for (int64_t r = 0; r < stripe.rows; ++r) {
    const int64_t a = stripe.first + r, last = stripe.class_end[a] - stripe.first;
    const auto row = row_of(stripe, r);
    Vec<T> row_loss = {}, row_sigma = {};
    const auto add = [&](int64_t j, auto lanes) {
      const Vec<T> d = row.at(j);
      const auto ap = pair_term<T>((rows.max[a] - d) * stripe.scale + rows.log2_sum[a]);
      const auto pa = pair_terms<T>(rows, stripe.scale, stripe.first + j, d);
      row_loss += lanes.keep(ap.loss + pa.loss);
      row_sigma += lanes.keep(ap.sigma);
      store(col_c + j - begin, load(col_c + j - begin) + lanes.keep(pa.sigma));
    };
    RowTeam<T>::for_columns(r + 1 > begin ? r + 1 : begin, last < end ? last : end, add);
    row_c[r] = sum(row_sigma);
    loss += double(sum(row_loss));
  }
  for (int64_t j = begin; j < end; ++j) c[stripe.first + j] += double(col_c[j - begin]);
  return loss;
}

// Sum of d over the positive pairs of one tile, columns [begin, end), above the diagonal, each
// weighted by 2 / |P|: a and p are in the same class, so one entry serves (a, p) and (p, a).
template <class T>
double sup_con_positives(const SimilarityStripe<T>& stripe, int64_t begin, int64_t end,
                         const RowWeights<T>&, T*, double*) {
  double total = 0;
  for (int64_t r = 0; r < stripe.rows; ++r) {
    const int64_t a = stripe.first + r, last = stripe.class_end[a] - stripe.first;
    const int64_t positives = stripe.class_end[a] - stripe.class_begin[a] - 1;
    const auto row = row_of(stripe, r);
    Vec<T> sum_of_row = {};
    RowTeam<T>::for_columns(r + 1 > begin ? r + 1 : begin, last < end ? last : end,
                            [&](int64_t j, auto lanes) { sum_of_row += lanes.keep(row.at(j)); });
    if (positives > 0) total += double(sum(sum_of_row)) * 2 / double(positives);
  }
  return total;
}

// Calls outside(j) and inside(j) for the vectors of the columns begin .. end - 1, inside for those
// that hold some of low .. high - 1. `begin` is a multiple of their width.
template <class T, class Outside, class Inside>
MCR_INLINE void split_columns(int64_t begin, int64_t end, int64_t low, int64_t high,
                              const Outside& outside, const Inside& inside) {
  constexpr int64_t W = kWidth<T>;
  const auto within = [&](int64_t j) { return j < begin ? begin : j > end ? end : j; };
  const int64_t from = within(low < 0 ? 0 : low / W * W);
  const int64_t to = within(high < 0 ? 0 : (high + W - 1) / W * W);
  for (int64_t j = begin; j < from; j += W) outside(j);
  for (int64_t j = from; j < to; j += W) inside(j);
  for (int64_t j = to; j < end; j += W) outside(j);
}

// sink(j, h): H of row r and the stripe's columns begin .. end - 1, in whole vectors.
template <bool kRunningMax, class T, class Sink>
MCR_INLINE void weights(NtXent, const SimilarityStripe<T>& stripe, int64_t r, int64_t begin,
                        int64_t end, const RowWeights<T>& rows, const Sink& sink) {
  const int64_t a = stripe.first + r, first = stripe.first_column, diagonal = a - first;
  const int64_t low = stripe.class_begin[a] - first, high = stripe.class_end[a] - first;
  const auto row = row_of(stripe, r);
  const RowWeight<T> own(rows, a, stripe.scale);
  const auto negatives = [&](int64_t j) {
    sink(j, weighted_exponentials<kRunningMax, T>(own, rows, first + j, row.at(j)));
  };
  const auto positives = [&](int64_t j) {
    const Vec<T> d = row.at(j);
    Vec<T> h = {};
    if (j < low || j + kWidth<T> > high) {
      h = weighted_exponentials<kRunningMax, T>(own, rows, first + j, d);
    }
    const Vec<T> both =
        pair_term<T>(own, d).sigma + pair_terms<T>(rows, own.scale, first + j, d).sigma;
    h = SomeLanes<T>(low - j, high - j).select(-both, h);
    sink(j, SomeLanes<T>(diagonal - j, diagonal - j + 1).select(Vec<T>{}, h));
  };
  split_columns<T>(begin, end, low, high, negatives, positives);
}
template <bool kRunningMax, class T, class Sink>
MCR_INLINE void weights(SupCon, const SimilarityStripe<T>& stripe, int64_t r, int64_t begin,
                        int64_t end, const RowWeights<T>& rows, const Sink& sink) {
  const int64_t a = stripe.first + r, first = stripe.first_column, diagonal = a - first;
  const int64_t low = stripe.class_begin[a] - first, high = stripe.class_end[a] - first;
  const T both = high - low > 1 ? T(2) / T(high - low - 1) : T(0);
  const auto row = row_of(stripe, r);
  const RowWeight<T> own(rows, a, stripe.scale);
  const auto negatives = [&](int64_t j) {
    sink(j, weighted_exponentials<kRunningMax, T>(own, rows, first + j, row.at(j)));
  };
  const auto positives = [&](int64_t j) {
    Vec<T> h = weighted_exponentials<kRunningMax, T>(own, rows, first + j, row.at(j));
    h = SomeLanes<T>(low - j, high - j).select(h - both, h);
    sink(j, SomeLanes<T>(diagonal - j, diagonal - j + 1).select(Vec<T>{}, h));
  };
  split_columns<T>(begin, end, low, high, negatives, positives);
}

// H of rows [begin, end) of the stripe and the panel's columns, written to the panel's own memory.
template <class Loss, bool kRunningMax, class T, class Out>
void weights_panel(const SimilarityStripe<T>& stripe, int64_t begin, int64_t end,
                   const RowWeights<T>& rows, const WeightsPanel<Out>& panel) {
  for (int64_t r = begin; r < end; ++r) {
    Out* out = panel.weights + r * panel.stride - panel.begin;
    weights<kRunningMax>(Loss(), stripe, r, panel.begin, panel.end, rows,
                         [&](int64_t j, Vec<T> h) { store_as(out + j, h); });
  }
}

template <class Loss, class T>
constexpr WeightsLoops<T> kWeightsLoops = {weights_panel<Loss, false, T, T>,
                                           weights_panel<Loss, true, T, T>, nullptr, nullptr};
template <class Loss>
constexpr WeightsLoops<float> kWeightsLoops<Loss, float> = {
    weights_panel<Loss, false, float, float>, weights_panel<Loss, true, float, float>,
    weights_panel<Loss, false, float, uint16_t>, weights_panel<Loss, true, float, uint16_t>};

template <class Loss, class T, class Positives>
constexpr ContrastiveLoops<T> contrastive_loops(Positives positives) {
  return {normalize_rows<T>, triangle<T>,           weighted_rows<T>, exp_sums<false, T>,
          exp_sums<true, T>, project_rows<T>,       to_bfloat16,      add_bfloat16,
          positives,         kWeightsLoops<Loss, T>};
}

}  // namespace MCR_ISA
}  // namespace mcr
