// What the launchers of the contrastive losses call.
#pragma once

#include "contrastive/stripe.h"
#include "cuda/sums.h"

namespace mcr {
namespace cuda {

// Rows of the batch sorted by label, absent ones last.
struct SortedRows {
  int64_t* order;                    // [L] sorted row -> given row
  int64_t *class_begin, *class_end;  // [padded L], written for rows that are present
  int64_t* num_present;              // [1]
};

// absent [L]: 1 where present[order[a]] is false.
void mark_absent(const bool* present, const int64_t* order, int64_t rows, int32_t* absent,
                 cudaStream_t stream);
// From labels in ascending order and where each stood; then, where `behind` is given, put in its
// order, in which the marks `absent` ascend.
void sort_rows(const int64_t* codes, const int64_t* order, const int32_t* absent,
               const int64_t* behind, int64_t rows, int64_t* sorted_codes, const SortedRows& to,
               cudaStream_t stream);

struct Embeddings {
  const void* x;    // [L, width]
  Storage storage;  // of x and scaled
  int64_t rows, width;
  int64_t padded_rows, padded_width;
  void* scaled;         // [padded L, padded width] x', 0 from row P and column `width` on
  float* inverse;       // [padded L] z = inverse x', 0 from row P on
  float* inverse_norm;  // [padded L] z = inverse_norm x, likewise
};
void scale_rows(const Embeddings& batch, const SortedRows& rows, cudaStream_t stream);

// One loss' kernels over a stripe of whole rows; `columns` is P, which only the device knows. Rows
// from P on leave zeros.
struct ContrastiveKernels {
  void (*rows)(const ScaledStripe<float>& stripe, const int64_t* num_present, bool running_max,
               const RowResults<float>& to, cudaStream_t stream);
  // h [rows, stride]: h_scale[0] H_ab inverse_b, columns from P on 0
  void (*weights)(const ScaledStripe<float>& stripe, const int64_t* num_present, bool running_max,
                  const RowWeights<float>& rows, const float* h_scale, Storage storage, void* h,
                  cudaStream_t stream);
  bool over_pairs;  // the loss is the mean over the positive pairs, not over rows that have one
};
extern const ContrastiveKernels kNtXentKernels, kSupConKernels;

struct Totals {
  float* value;    // [1] the loss
  float* factor;   // [1] 1 / (terms * temperature * h_scale); 0 if there are no terms
  float* h_scale;  // [1] what brings H into the range of its storage
};
void add_rows(const RowResults<float>& from, const SortedRows& rows, bool over_pairs,
              double temperature, Storage storage, const Totals& to, cudaStream_t stream);

// grad_x [L, width] of the rows first .. first + rows - 1 from their factor-less g [rows, padded
// width].
void project_rows(const float* g, int64_t first, int64_t rows, const Embeddings& batch,
                  const SortedRows& sorted, const float* factor, float* grad_x,
                  cudaStream_t stream);

}  // namespace cuda
}  // namespace mcr
