// A row's pairs that one team has to itself. Several teams of a GPU share them by cuda/parts.h.
#pragma once

#include <stdint.h>

#include "core/macros.h"

namespace mcr {
namespace MCR_ISA {

// The parts of a row's pairs where there is one.
struct Whole {
  static constexpr int part = 0, parts = 1;
  static constexpr bool live = true;  // there is such a row

  MCR_FN static bool leads() { return true; }
  // Adds what the other parts have; to be called by all of them, for the same things in turn.
  template <class X>
  MCR_FN static void add(X&) {}
  template <class T>
  MCR_FN static void add_tile(T*, int64_t) {}
};

}  // namespace MCR_ISA
}  // namespace mcr
