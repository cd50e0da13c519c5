// What the launcher tells the row loops of permuted_divergence. Plain data, one definition for
// every instruction set: its functions are always inlined, so none of them is ever emitted.
#pragma once

#include <stdint.h>

#include "divergence/kind.h"

#if defined(__CUDACC__)
#define MCR_ALWAYS_INLINE __host__ __device__ __forceinline__
#else
#define MCR_ALWAYS_INLINE __attribute__((always_inline)) inline
#endif
#if defined(__CUDA_ARCH__)
#define MCR_POPCOUNT __popc
#else
#define MCR_POPCOUNT __builtin_popcount
#endif

namespace mcr {

constexpr int kMaxModalities = 8;

enum class Exclude { kNone, kSelf, kSameLabel };
enum class CleanPath { kShared, kRouted, kDetached };

// The team that runs a row (divergence.h), and how a lane team reads its donors.
enum class TeamKind { kRow, kLanesShifted, kLanesGathered };

template <class T>
struct PermutedDivergenceProblem {
  const T* contributions;  // rows in whole vectors [M, N, row_stride]; kLanesShifted [M, C,
                           // step_stride], rows repeated; kLanesGathered [M, N, row_stride], in
                           // whole quads. In units of log2 (no logits: as given; jsd: less
                           // the largest of the row)
  const T* powers;         // the same layout: 2^contribution; jsd only
  const T* bias;           // in the same units; row team [steps * W]; lane teams [C]
  int64_t modality_stride, row_stride, step_stride;
  int modalities;
  int64_t rows, permutations, steps;

  const int32_t* table;  // [1 or M, K, table_stride] rows, 0 past row N; or null
  int64_t table_stride;
  const int64_t* shifts;  // [1 or M, K], or null; without both: all shifts 1..N-1
  bool own_donors;

  bool may_drop;  // some pair may be dropped
  Exclude exclude;
  const int64_t* labels;    // [N] or null
  const uint32_t* present;  // [N] bit m: modality m is there; or null
  const T* row_weight;      // [N] or null

  const uint32_t* subsets;  // [S] bit m: modality m is a member
  int num_subsets;
  const T* factors;  // [S] upstream gradient over the sum of the pair weights
  int outsider;      // k of the strategy: -1, 0, +1
  CleanPath clean_path;

  DivergenceKind divergence;
  TeamKind team;
  int group;  // rows that go through the two passes together, 1 to kGroup
  bool want_grad;

  MCR_ALWAYS_INLINE int64_t shift(int m, int64_t k) const {
    return shifts ? shifts[(own_donors ? m * permutations : 0) + k] : k + 1;
  }
  MCR_ALWAYS_INLINE const int32_t* donor_row(int m, int64_t k) const {
    return table + ((own_donors ? m * permutations : 0) + k) * table_stride;
  }
  MCR_ALWAYS_INLINE int64_t donor(int m, int64_t k, int64_t row) const {
    if (table) return donor_row(m, k)[row];
    const int64_t j = row + shift(m, k);
    return j < rows ? j : j - rows;
  }
  // NaN equals nothing, itself included: a row with that label has a code from here on.
  MCR_ALWAYS_INLINE bool same_label(int64_t i, int64_t j) const {
    constexpr uint64_t kNanCodes = 0x7ff8000000000001;
    return labels[i] == labels[j] && uint64_t(labels[i]) - kNanCodes >= uint64_t{1} << 31;
  }
  MCR_ALWAYS_INLINE bool keeps(uint32_t subset, int64_t k, int64_t row) const {
    for (int m = 0; m < modalities; ++m) {
      if (!(subset >> m & 1)) continue;
      const int64_t j = donor(m, k, row);
      if (present && !((present[row] & present[j]) >> m & 1)) return false;
      if (exclude == Exclude::kSelf && j == row) return false;
      if (exclude == Exclude::kSameLabel && same_label(row, j)) return false;
    }
    return true;
  }

  // What the pair (row, its donors) weighs; 0 if it is dropped.
  MCR_ALWAYS_INLINE T pair_weight(uint32_t subset, int64_t k, int64_t row, T factor) const {
    if (may_drop && !keeps(subset, k, row)) return T(0);
    return row_weight ? factor * row_weight[row] : factor;
  }

  MCR_ALWAYS_INLINE int head(int s) const {
    const int size = MCR_POPCOUNT(subsets[s]);
    return outsider > 0 ? 1 : size + outsider * (modalities - size);
  }
  MCR_ALWAYS_INLINE int clean_head(int s) const {
    return clean_path == CleanPath::kDetached ? 0 : head(s);
  }
  MCR_ALWAYS_INLINE int clean_route(int s, int m) const {
    if (clean_path != CleanPath::kRouted) return clean_head(s);
    return subsets[s] >> m & 1 ? 1 : outsider;
  }
};

// One part's own memory: the parts run side by side and are added up in order afterwards.
template <class T>
struct PermutedDivergencePart {
  T* grad;         // as contributions, or null
  T* grad_bias;    // [steps * W], or null
  T* scratch;      // [11 + 2 group, steps * W]
  double* values;  // [S]
};

}  // namespace mcr
