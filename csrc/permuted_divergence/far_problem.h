// What the launcher tells the row algorithms of far.h. Plain data.
#pragma once

#include "permuted_divergence/sides_problem.h"

namespace mcr {

// No power is smaller: its inverse and its logarithm stay finite.
constexpr double kLeastPower = 1.17549435e-38;

// Two modalities, the JSD, donors that both share. Rows [2, N, row_stride] in units of log2, less
// the row's largest, and 0 past their end.
template <class T>
struct FarProblem : SidesProblem<T> {
  const T* powers;       // the same layout: 2^row, 1 past the end
  const T* bias_powers;  // [row_stride] 2^(bias - its largest), 0 past the end
  int subset_of[2];      // the subset that takes modality m, or -1

  MCR_ALWAYS_INLINE int taken(int s) const { return int(this->subsets[s] >> 1); }
  MCR_ALWAYS_INLINE const T* power_row(int m, int64_t i) const {
    return powers + (m * this->rows + i) * this->row_stride;
  }
  // From one permutation's record to the next one's.
  MCR_ALWAYS_INLINE int64_t record_step() const {
    return int64_t(uint64_t(uint32_t(this->rows)) * uint32_t(this->num_subsets));
  }
  // The pair of a row and a donor is left to the other passes. Who else says so writes the same 1.
  MCR_ALWAYS_INLINE void leave(int s, int64_t i, int64_t j) const {
    this->left[s * this->rows + i] = 1;
    this->left[(this->num_subsets + s) * this->rows + j] = 1;
  }
  // Row i's donor, row j's receiver, and where a row begins: with 32 bits where they are enough,
  // for every lane does this for every pair.
  template <bool kTable>
  MCR_ALWAYS_INLINE int32_t far_donor(int64_t k, int32_t i) const {
    if (kTable) return this->table[k * this->rows + i];
    const int32_t rows = int32_t(this->rows), left = rows - i;
    const int32_t shift = int32_t(this->shifts ? this->shifts[k] : k + 1);
    return shift < left ? i + shift : shift - left;
  }
  template <bool kTable>
  MCR_ALWAYS_INLINE int32_t far_receiver(int64_t k, int32_t j) const {
    if (kTable) return this->receivers[k * this->rows + j];
    const int32_t i = j - int32_t(this->shifts ? this->shifts[k] : k + 1);
    return i < 0 ? i + int32_t(this->rows) : i;
  }
  // As keeps(), of a subset that is modality m alone.
  MCR_ALWAYS_INLINE bool far_keeps(int m, int32_t i, int32_t j) const {
    if (this->present && !((this->present[i] & this->present[j]) >> m & 1)) return false;
    if (this->exclude == Exclude::kSelf) return j != i;
    return this->exclude == Exclude::kNone || !this->same_label(i, j);
  }
  MCR_ALWAYS_INLINE int64_t offset_of(uint32_t row) const {
    return int64_t(uint64_t(row) * uint32_t(this->row_stride));
  }
};

}  // namespace mcr
