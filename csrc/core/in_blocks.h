// Loops in blocks whose size the compiler knows.
#pragma once

#include <stdint.h>

#include "core/macros.h"

namespace mcr {
namespace MCR_ISA {

template <int kSize>
struct Size {
  static constexpr int value = kSize;
};

// block(size, first) for the whole blocks of `count`, then for what is left, one by one. The size
// is a constant in the block's loops.
template <int kBlock, class F>
MCR_INLINE void in_blocks(int64_t count, const F& block) {
  int64_t i = 0;
  for (; i + kBlock <= count; i += kBlock) block(Size<kBlock>{}, i);
  for (; i < count; ++i) block(Size<1>{}, i);
}

}  // namespace MCR_ISA
}  // namespace mcr
