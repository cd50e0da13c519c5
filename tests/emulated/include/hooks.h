// What tests change in the launchers, and what they ask of them. Included before everything else.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <vector>

namespace emulator {

// In the place of a constant that build.py names.
inline int64_t knob(const char* name, int64_t usual) {
  const char* text = std::getenv(name);
  return text ? std::atoll(text) : usual;
}

// The rows, and the donors, of pairs that the last band left to the exact kernels: [2, S, N].
inline std::vector<int32_t> left;

}  // namespace emulator
