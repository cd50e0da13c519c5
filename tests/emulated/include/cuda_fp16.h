// In place of CUDA's own, for the emulator.
#pragma once

#include <immintrin.h>
#include <stdint.h>

struct __half {
  uint16_t bits;
};

inline float __half2float(__half x) { return _cvtsh_ss(x.bits); }
inline __half __float2half_rn(float x) {
  return {uint16_t(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC))};
}
