// A small contrastive batch in two kernels, without a sort and without library products: up to so
// many rows and columns neither is worth its launches.
#pragma once

#include "contrastive/stripe.h"
#include "cuda/sums.h"

namespace mcr {
namespace cuda {

constexpr int kMaxSmallRows = 1024;   // L, of which a block holds the labels
constexpr int kMaxSmallWidth = 4096;  // D
constexpr int kMaxSmallParts = 8;     // M

struct SmallBatch {
  const void* x[kMaxSmallParts];  // of each modality [N, width]: row m * N + i of the batch
  Storage storage;
  bool in_pieces;           // four elements at once: every row begins at a multiple of them
  int parts, rows_of_part;  // M, N
  int rows, width;          // L, D
  const int64_t* labels;    // [N]
  const bool* present;      // [N, M], null where all rows are
  bool over_pairs;          // nt_xent, not sup_con
  double temperature;
  // What the first kernel leaves: d_ab, and of every row 2^k, the factor of 2^k x in z, its loss,
  // what H takes of it, and how many positives it has.
  float* similarities;      // [L, L]
  float *factor, *inverse;  // [L]
  RowResults<float> results;
  int32_t* positives;  // [L]
};

void small_rows(const SmallBatch& batch, cudaStream_t stream);
// The loss [], after small_rows.
void small_loss(const SmallBatch& batch, float* loss, cudaStream_t stream);
// The loss [] and the unit gradient [L, width], likewise.
void small_gradient(const SmallBatch& batch, float* loss, float* grad, cudaStream_t stream);

}  // namespace cuda
}  // namespace mcr
