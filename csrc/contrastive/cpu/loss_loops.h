// What the two contrastive losses do on tiles of the triangle, by loops of their own.
#pragma once

#include "contrastive/cpu/loops.h"
#include "contrastive/nt_xent.h"
#include "contrastive/sup_con.h"

namespace mcr {
namespace MCR_ISA {

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
double sup_con_positives(const SimilarityStripe<T>& stripe, int64_t begin, int64_t end) {
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

// H of rows [begin, end) of the stripe and the panel's columns, written to the panel's own memory.
template <class Loss, bool kRunningMax, class T, class Out>
void weights_panel(const SimilarityStripe<T>& stripe, int64_t begin, int64_t end,
                   const RowWeights<T>& rows, const WeightsPanel<Out>& panel) {
  for (int64_t r = begin; r < end; ++r) {
    Out* out = panel.weights + r * panel.stride - panel.begin;
    Loss::template weights<RowTeam<T>, kRunningMax>(
        stripe, r, panel.begin, panel.end, rows, [](int64_t, Vec<T> h) { return h; },
        [&](int64_t j, Vec<T> h) { store_as(out + j, h); });
  }
}

template <class Loss, class T>
constexpr WeightsKernels<T> kWeightsKernels = {weights_panel<Loss, false, T, T>,
                                               weights_panel<Loss, true, T, T>, nullptr, nullptr};
template <class Loss>
constexpr WeightsKernels<float> kWeightsKernels<Loss, float> = {
    weights_panel<Loss, false, float, float>, weights_panel<Loss, true, float, float>,
    weights_panel<Loss, false, float, uint16_t>, weights_panel<Loss, true, float, uint16_t>};

}  // namespace MCR_ISA
}  // namespace mcr
