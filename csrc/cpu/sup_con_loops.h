#pragma once

#include "cpu/similarity_loops.h"
#include "cpu/sup_con_kernels.h"
#include "sup_con.h"

namespace mcr {
namespace MCR_ISA {

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
template <bool kRunningMax, class T, class Out>
void sup_con_panel(const SimilarityStripe<T>& stripe, int64_t begin, int64_t end,
                   const RowWeights<T>& rows, const WeightsPanel<Out>& panel) {
  for (int64_t r = begin; r < end; ++r) {
    Out* out = panel.weights + r * panel.stride - panel.begin;
    sup_con_weights<RowTeam<T>, kRunningMax>(
        stripe, r, panel.begin, panel.end, rows, [](int64_t, Vec<T> h) { return h; },
        [&](int64_t j, Vec<T> h) { store_as(out + j, h); });
  }
}

constexpr SupConKernels kSupConKernels = {
    {kSimilarityKernels<float>,
     sup_con_positives<float>,
     {sup_con_panel<false, float, float>, sup_con_panel<true, float, float>,
      sup_con_panel<false, float, uint16_t>, sup_con_panel<true, float, uint16_t>}},
    {kSimilarityKernels<double>,
     sup_con_positives<double>,
     {sup_con_panel<false, double, double>, sup_con_panel<true, double, double>, nullptr,
      nullptr}}};

}  // namespace MCR_ISA
}  // namespace mcr
