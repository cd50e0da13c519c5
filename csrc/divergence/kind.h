// The divergences by name, and what launchers and row loops have to know of one before it runs.
#pragma once

#include <stdint.h>

#include "core/units.h"

#if defined(__CUDACC__)
#define MCR_CONSTEXPR __host__ __device__ constexpr
#else
#define MCR_CONSTEXPR constexpr
#endif

namespace mcr {

// No logit is taken to be further from 0: a mask as large as the largest number there is stays a
// number in units of log2, in sums of contributions and in sums over rows. What the padding holds
// is further out, so that it is no class even of a row that is masked altogether.
constexpr double kFarthest = 1e20;
constexpr double kNoClass = -1e30;

enum class DivergenceKind { kJsd, kSquaredError, kBinaryJsd };

struct DivergenceTraits {
  const char* name;
  bool softmax;  // of one distribution over the classes: what they have in common is not felt
  bool binary;   // of two outcomes for each class

  // Logits are read in units of log2; what holds no logits is read as it is given.
  MCR_CONSTEXPR bool log2() const { return softmax || binary; }
  // A row's value is a mean over so many.
  MCR_CONSTEXPR int64_t terms(int64_t classes) const {
    return softmax || classes == 0 ? 1 : classes;
  }
};

// In the order of the kinds. A divergence is a line here and a type in a file of its own
// (divergence.h); mcr_fast/_names.py has the names and what they are of for Python.
constexpr DivergenceTraits kDivergences[] = {
    {"jsd", true, false},
    {"mse", false, false},
    {"binary_jsd", false, true},
};

constexpr DivergenceTraits traits_of(DivergenceKind kind) { return kDivergences[int(kind)]; }

}  // namespace mcr
