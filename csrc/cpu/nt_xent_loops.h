#pragma once

#include "cpu/nt_xent_kernels.h"
#include "cpu/similarity_loops.h"
#include "nt_xent.h"

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

// H of rows [begin, end) of the stripe and the panel's columns, written to the panel's own memory.
template <bool kRunningMax, class T, class Out>
void nt_xent_panel(const SimilarityStripe<T>& stripe, int64_t begin, int64_t end,
                   const RowWeights<T>& rows, const WeightsPanel<Out>& panel) {
  for (int64_t r = begin; r < end; ++r) {
    Out* out = panel.weights + r * panel.stride - panel.begin;
    nt_xent_weights<RowTeam<T>, kRunningMax>(
        stripe, r, panel.begin, panel.end, rows, [](int64_t, Vec<T> h) { return h; },
        [&](int64_t j, Vec<T> h) { store_as(out + j, h); });
  }
}

constexpr NtXentKernels kNtXentKernels = {
    {kSimilarityKernels<float>,
     nt_xent_pairs<float>,
     {nt_xent_panel<false, float, float>, nt_xent_panel<true, float, float>,
      nt_xent_panel<false, float, uint16_t>, nt_xent_panel<true, float, uint16_t>}},
    {kSimilarityKernels<double>,
     nt_xent_pairs<double>,
     {nt_xent_panel<false, double, double>, nt_xent_panel<true, double, double>, nullptr,
      nullptr}}};

}  // namespace MCR_ISA
}  // namespace mcr
