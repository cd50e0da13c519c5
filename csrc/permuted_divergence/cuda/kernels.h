// What the launcher of permuted_divergence calls: plain data and streams, so that kernels compile
// without torch's headers and the launcher without nvcc.
#pragma once

#include "cuda/sums.h"
#include "permuted_divergence/band_problem.h"

namespace mcr {
namespace cuda {

constexpr int kMaxSubsets = 254;  // the non-empty proper ones of 8 modalities
constexpr int kBiasRows = 64;     // rows that one partial sum of the bias' gradient takes

struct Subsets {
  uint8_t bits[kMaxSubsets];
};

constexpr int kCleared = 3, kPoisoned = 2;

// The inputs as torch holds them, and where they go: in the order of positions, float, in units of
// log2 (no logits: as they are).
struct LayOut {
  const int32_t* skip;        // where it holds 1 there is nothing to do; or null
  const void* contributions;  // [M, N, C]
  Storage storage;
  const float* bias;           // [C] or null
  const int64_t* order;        // [N] or null: `order_to`
  const int64_t* labels;       // [N] or null
  const bool* present;         // [N, M] or null
  const float* sample_weight;  // [N] or null
  // Donors, which nobody has checked: the tables' rows, or one order with its shifts.
  const int64_t *given, *shifts;  // [lines, N] or null, [num_shifts] or null
  int64_t modalities, rows, classes, lines, num_shifts;
  float scale;
  bool centered;            // jsd: rows less their largest
  bool saturated;           // binary_jsd: within kFarthest
  float* contributions_to;  // [M, N, row_stride]
  float* bias_to;           // [C]
  // For a band, as BandProblem has them; else null.
  float *powers_to, *bias_powers_to;
  int32_t* bad_to;        // [M N + 1]
  int64_t* window_to;     // [num_shifts + 1] shifts on from the first, or, scattered, as given
  int32_t* scattered_to;  // [1]
  int64_t row_stride;     // C but for a band
  int64_t* labels_to;
  uint32_t* present_to;
  float* weight_to;
  int32_t *table_to, *receivers_to;  // [lines, N]; the table null for an order
  int64_t *order_to, *shifts_to;     // [N], [num_shifts]; null for a table
  float* poison;                     // [lines]: NaN where a line or a shift is wrong, else 0
  // Set to 0 on the way, the first two to the poison; null where there is nothing.
  struct Cleared {
    float* to;
    int64_t count;
  } cleared[kCleared];
  // What every pair of a subset is to weigh, where that needs no sum: else factors_to is null.
  Subsets subsets;
  int num_subsets;
  double pairs, terms;    // terms: of the mean over the classes
  const float* upstream;  // [S], or null: 1
  float* factors_to;      // [S]
  uint32_t* subsets_to;   // [S]
};
void lay_out(const LayOut& inputs, cudaStream_t stream);

// A small batch: what comes before its pairs is one launch, the rest another.
struct SmallPairs : SidesProblem<float> {
  Subsets members;
  const float* upstream;  // [S], or null: 1; where all are equal, the unit gradients are scaled
  const float *unit, *unit_bias;  // [M, N, C], [C], for that
  double pairs, terms;            // as LayOut has them; pairs 0 where the weights have to be summed
  const float* poison;            // [lines]
  int64_t lines;
  int32_t* finished;         // [1] blocks; the last one adds up
  float* values;             // [S], or null
  void *to, *to_bias;        // [M, N, C], [C]
  Storage storage, of_bias;  // of the two
};
// For small_sides: `finished` is set to 0. Nothing where layout.upstream is given and all equal.
void lay_out_small(const LayOut& layout, int32_t* finished, cudaStream_t stream);
void small_sides(const SmallPairs& batch, cudaStream_t stream);

// The subsets -> problem.subsets; the poison and upstream (null: 1) over the sums of the weights ->
// problem.factors.
void weigh_subsets(const SidesProblem<float>& problem, const Subsets& subsets, const LayOut& layout,
                   const float* upstream,
                   double* row_sums,  // [S, N], used where pairs may be dropped
                   float* factors, uint32_t* subsets_to, cudaStream_t stream);

constexpr int64_t kMaxSharedClasses = 192;  // of a small batch, whose teams share a row's pairs
void own_side(const SidesProblem<float>& problem, cudaStream_t stream);
void donor_side(const SidesProblem<float>& problem, cudaStream_t stream);

// Donors that are shifts of the rows (band.h); the two above then do what that leaves.
constexpr int64_t kMaxBandClasses = 4096;
constexpr int kBandSharedBytes = 125440;  // the most that a block of them has
void band_masses(const BandProblem& problem, cudaStream_t stream);
void band_terms(const BandProblem& problem, cudaStream_t stream);
void band_centre(const BandProblem& problem, cudaStream_t stream);

// to [C] = the sums over the rows [N, C]; partial [ceil(N / kBiasRows), C]. Nothing where *skip is
// 1.
void sum_bias(const float* from, int64_t rows, int64_t classes, float* partial, float* to,
              cudaStream_t stream, const int32_t* skip);

// *skip = whether all of upstream [S] are equal.
void compare_upstream(const float* upstream, int64_t subsets, int32_t* skip, cudaStream_t stream);
}  // namespace cuda
}  // namespace mcr
