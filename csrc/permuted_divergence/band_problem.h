// What the launcher tells the kernels of a band (cuda/band.h). Plain data.
#pragma once

#include "permuted_divergence/sides_problem.h"

namespace mcr {

// No power is smaller: quotients of two of them are in range, and it is next to nothing beside the
// masses that the kernels take. Its log2.
constexpr float kLeastPower = 7.88860905e-31f, kLeastLog = -100.0f;

constexpr int kBandRows = 32;                   // of a block, and the shifts of a band
constexpr int kBandDonors = 2 * kBandRows - 1;  // that they meet

// Two modalities, the JSD, donors that both share: the row at position i takes them from i + f,
// i + f + 1, .. of N positions in a circle, in slot 0, 1, ..: `first`, `last` and what is kept of
// pairs count slots. One slot more than there are donors holds what a circle leaves over: where
// the shifts pass N, slot N - f is the row itself, and the last one is that shift. Offsets in the
// arrays of floats have 32 bits.
struct BandProblem : SidesProblem<float> {
  const float* powers;       // [2, N, row_stride] 2^row, kLeastPower at least, 1 past the end
  const float* bias_powers;  // [row_stride] 2^(bias - its largest), 0 past the end
  const int32_t* bad;        // [2 N + 1] whether a row, or the bias, holds a number not finite
  const int32_t* scattered;  // [1] whether the shifts are not what is said above; or null
  const float* poison;       // [1] NaN where the order is none or a shift is wrong; or null
  int64_t slots;             // donors of a row
  float* ratios_to;          // `ratios`
  float* clean_mass;         // [N] S of a row
  float* pull;               // [last - first, S, N] r kappa of a pair
  int32_t* modes;            // [bands, S, blocks, 4] how a tile of shifts is gone through
  float* own;                // [bands, S, N, row_stride] half of the sum of r e L
  float* logs;               // [bands, S, N, row_stride] the sum of log2(p / mean)
  float* given;              // [bands, S, blocks, kBandDonors, row_stride] half of that of r g L
  float* kl_p;               // [bands, S, N] the sum of KL(p | mean) / ln2
  double* band_values;       // [bands, S, N]

  MCR_ALWAYS_INLINE int taken(int s) const { return int(this->subsets[s] >> 1); }
  // Where a row of modality m begins.
  MCR_ALWAYS_INLINE uint32_t offset(int m, int i) const {
    return uint32_t(m * int(this->rows) + i) * uint32_t(this->row_stride);
  }
  // The first shift; all shifts from 1 on where no order was given.
  MCR_ALWAYS_INLINE int first_shift() const { return this->shifts ? int(this->shifts[0]) : 1; }
  // As keeps(), of a subset that is modality m alone.
  MCR_ALWAYS_INLINE bool keeps_pair(int m, int i, int j) const {
    if (this->present && !((this->present[i] & this->present[j]) >> m & 1)) return false;
    if (this->exclude == Exclude::kSelf) return j != i;
    return this->exclude == Exclude::kNone || !this->same_label(i, j);
  }
};

}  // namespace mcr
