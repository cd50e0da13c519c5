// The kernels that the contrastive losses share: their rows in and out, and the sums over them.
#include "contrastive/cuda/kernels.h"
#include "contrastive/embedding_rows.h"
#include "cuda/blocks.h"
#include "cuda/teams.h"

namespace mcr {
namespace cuda {
namespace {

using WarpRow = DeviceTeam<32, 1>;

__global__ void mark_absent_kernel(const bool* present, const int64_t* order, int64_t rows,
                                   int32_t* absent) {
  for (int64_t a = first_index(); a < rows; a += index_step()) absent[a] = !present[order[a]];
}

__global__ void gather_rows_kernel(const int64_t* codes, const int64_t* order,
                                   const int64_t* behind, int64_t rows, int64_t* sorted_codes,
                                   int64_t* to_order) {
  for (int64_t a = first_index(); a < rows; a += index_step()) {
    const int64_t from = behind ? behind[a] : a;
    sorted_codes[a] = codes[from];
    to_order[a] = order[from];
  }
}

__global__ void find_classes_kernel(const int64_t* sorted_codes, const int32_t* absent,
                                    int64_t rows, const SortedRows to) {
  const int64_t present = absent ? find_bound<false>(absent, rows, 1) : rows;
  if (first_index() == 0) *to.num_present = present;
  for (int64_t a = first_index(); a < present; a += index_step()) {
    to.class_begin[a] = find_bound<false>(sorted_codes, present, sorted_codes[a]);
    to.class_end[a] = find_bound<true>(sorted_codes, present, sorted_codes[a]);
  }
}

template <class X>
__global__ void __launch_bounds__(kThreads<WarpRow>)
    scale_rows_kernel(const __grid_constant__ Embeddings batch, const int64_t* order,
                      const int64_t* num_present) {
  const int64_t a = team_number<WarpRow>();
  if (a >= batch.padded_rows) return;
  X* to = static_cast<X*>(batch.scaled) + a * batch.padded_width;
  int64_t width = 0;
  mcr::MCR_ISA::RowScale scale = {0.0f, 0.0f};
  if (a < *num_present) {
    width = batch.width;
    const X* from = static_cast<const X*>(batch.x) + order[a] * width;
    // A float16 row goes to the upper end of its range, where its smallest elements stay exact.
    const int top = batch.storage == Storage::kHalf ? 14 : 0;
    scale = mcr::MCR_ISA::scale_row<WarpRow>(
        width, top, [&](int64_t d) { return to_float(from[d]); },
        [&](int64_t d, float x) { assign(to + d, x); });
  }
  WarpRow::for_columns(width, batch.padded_width, [&](int64_t d, auto) { assign(to + d, 0.0f); });
  if (!WarpRow::leads()) return;
  batch.inverse[a] = scale.inverse;
  batch.inverse_norm[a] = scale.inverse_norm;
}

template <class X>
__global__ void __launch_bounds__(kThreads<WarpRow>)
    project_rows_kernel(const float* g, int64_t first, int64_t rows,
                        const __grid_constant__ Embeddings batch, const int64_t* order,
                        const int64_t* num_present, const float* factor, float* grad_x) {
  const int64_t r = team_number<WarpRow>(), a = first + r;
  if (r >= rows || a >= batch.rows) return;
  float* to = grad_x + order[a] * batch.width;
  // Without terms the gradient is 0, whatever the rows hold.
  if (a >= *num_present || *factor == 0) {
    WarpRow::for_columns(0, batch.width, [&](int64_t d, auto) { to[d] = 0; });
    return;
  }
  const float* gradient = g + r * batch.padded_width;
  const X* scaled = static_cast<const X*>(batch.scaled) + a * batch.padded_width;
  mcr::MCR_ISA::project_row<WarpRow>(
      batch.width, {batch.inverse[a], batch.inverse_norm[a]}, *factor,
      [&](int64_t d) { return gradient[d]; }, [&](int64_t d) { return to_float(scaled[d]); },
      [&](int64_t d, float x) { to[d] = x; });
}

// One block: the rows' losses and terms in a fixed order.
__global__ void __launch_bounds__(kSumThreads)
    add_rows_kernel(const RowResults<float> from, const SortedRows rows, bool over_pairs,
                    double temperature, bool half, const Totals to) {
  constexpr int kAtOnce = 4;
  double losses[kAtOnce] = {};
  int64_t terms[kAtOnce] = {};
  float largest[kAtOnce] = {};
  for_elements<kAtOnce>(*rows.num_present, [&](int k, int64_t a, bool counts) {
    const int64_t others = rows.class_end[a] - rows.class_begin[a] - 1;
    const double loss = from.loss[a];
    const float c = from.c[a];
    losses[k] += counts ? loss : 0.0;
    terms[k] += !counts ? 0 : over_pairs ? others : others > 0;
    largest[k] = fmaxf(largest[k], c);
  });
#pragma unroll
  for (int k = 1; k < kAtOnce; ++k) {
    losses[0] += losses[k];
    terms[0] += terms[k];
    largest[0] = fmaxf(largest[0], largest[k]);
  }
  const double loss = block_sum<kSumThreads>(losses[0]);
  const double count = block_sum<kSumThreads>(double(terms[0]));
  const float most = block_max<kSumThreads>(largest[0]);
  if (threadIdx.x != 0) return;
  // float16 has few exponents, so H's entries, 2 c at most and divided by 2^14 with the scaled
  // rows, are brought to 2^15 at most. A power of two rounds nothing.
  const float h_scale = half ? exp2f(floorf(28 - log2f(fmaxf(most, 0x1p-60f)))) : 1.0f;
  *to.value = count > 0 ? float(loss * kLn2 / count) : 0.0f;
  *to.factor = count > 0 ? float(1 / (count * temperature * h_scale)) : 0.0f;
  *to.h_scale = h_scale;
}

unsigned warp_blocks(int64_t rows) { return blocks_of(rows, 1, kTeams<WarpRow>); }

}  // namespace

void mark_absent(const bool* present, const int64_t* order, int64_t rows, int32_t* absent,
                 cudaStream_t stream) {
  mark_absent_kernel<<<blocks_for(rows), kBlockThreads, 0, stream>>>(present, order, rows, absent);
}

void sort_rows(const int64_t* codes, const int64_t* order, const int32_t* absent,
               const int64_t* behind, int64_t rows, int64_t* sorted_codes, const SortedRows& to,
               cudaStream_t stream) {
  gather_rows_kernel<<<blocks_for(rows), kBlockThreads, 0, stream>>>(codes, order, behind, rows,
                                                                     sorted_codes, to.order);
  find_classes_kernel<<<blocks_for(rows), kBlockThreads, 0, stream>>>(sorted_codes, absent, rows,
                                                                      to);
}

void scale_rows(const Embeddings& batch, const SortedRows& rows, cudaStream_t stream) {
  with_storage(batch.storage, [&](auto zero) {
    scale_rows_kernel<decltype(zero)>
        <<<warp_blocks(batch.padded_rows), kThreads<WarpRow>, 0, stream>>>(batch, rows.order,
                                                                           rows.num_present);
  });
}

void add_rows(const RowResults<float>& from, const SortedRows& rows, bool over_pairs,
              double temperature, Storage storage, const Totals& to, cudaStream_t stream) {
  add_rows_kernel<<<1, kSumThreads, 0, stream>>>(from, rows, over_pairs, temperature,
                                                 storage == Storage::kHalf, to);
}

void project_rows(const float* g, int64_t first, int64_t rows, const Embeddings& batch,
                  const SortedRows& sorted, const float* factor, float* grad_x,
                  cudaStream_t stream) {
  with_storage(batch.storage, [&](auto zero) {
    project_rows_kernel<decltype(zero)><<<warp_blocks(rows), kThreads<WarpRow>, 0, stream>>>(
        g, first, rows, batch, sorted.order, sorted.num_present, factor, grad_x);
  });
}

}  // namespace cuda
}  // namespace mcr
