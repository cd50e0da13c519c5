// CUDA's words for a host compiler: what csrc/cuda/*.cu say, run thread by thread. A block's
// threads are fibers that run until they meet a barrier; blocks run one after the other. A barrier
// that some thread cannot reach, and a shuffle with a lane that does not take part, are errors.
#pragma once

#include <assert.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __grid_constant__
#define __launch_bounds__(...)
#define __restrict__
#define __shared__ static  // one block at a time

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

namespace emulator {

struct Place {
  dim3 thread, block, threads, blocks;
};
const Place& place();

void launch(const char* name, dim3 blocks, dim3 threads, const std::function<void()>& kernel);
void wait_for_block();
void wait_for_lanes(uint32_t mask);
// Of this thread's warp: what each lane brought to the exchange that is going on.
uint64_t* lanes();
int lane();
[[noreturn]] void fail(const std::string& what);

template <class T>
uint64_t bits_of(T x) {
  uint64_t bits = 0;
  static_assert(sizeof(x) <= sizeof(bits));
  memcpy(&bits, &x, sizeof(x));
  return bits;
}
template <class T>
T value_of(uint64_t bits) {
  T x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

}  // namespace emulator

#define threadIdx (emulator::place().thread)
#define blockIdx (emulator::place().block)
#define blockDim (emulator::place().threads)
#define gridDim (emulator::place().blocks)

inline void __syncthreads() { emulator::wait_for_block(); }
inline void __syncwarp(uint32_t mask = 0xffffffffu) { emulator::wait_for_lanes(mask); }

// Blocks run one after the other, and a thread until it waits.
inline void __threadfence() {}
inline int atomicAdd(int* to, int x) {
  const int before = *to;
  *to += x;
  return before;
}

inline int __syncthreads_or(int predicate) {
  static int any;
  __syncthreads();  // the one before this has been read
  any = 0;
  __syncthreads();
  any |= predicate != 0;
  __syncthreads();
  return any;
}

template <class T>
T emulated_shuffle(uint32_t mask, T x, int from) {
  if (!(mask >> emulator::lane() & 1) || !(mask >> from & 1)) {
    emulator::fail("a shuffle with a lane that is not in its mask");
  }
  emulator::lanes()[emulator::lane()] = emulator::bits_of(x);
  emulator::wait_for_lanes(mask);
  const T y = emulator::value_of<T>(emulator::lanes()[from]);
  emulator::wait_for_lanes(mask);
  return y;
}
template <class T>
T __shfl_xor_sync(uint32_t mask, T x, int distance) {
  return emulated_shuffle(mask, x, emulator::lane() ^ distance);
}
template <class T>
T __shfl_sync(uint32_t mask, T x, int from, int width = 32) {
  return emulated_shuffle(mask, x, emulator::lane() / width * width + from % width);
}
template <class T>
T __shfl_down_sync(uint32_t mask, T x, int distance) {
  const int from = emulator::lane() + distance;
  return emulated_shuffle(mask, x, from < 32 ? from : emulator::lane());
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate) {
  emulator::lanes()[emulator::lane()] = predicate != 0;
  emulator::wait_for_lanes(mask);
  uint32_t votes = 0;
  for (int l = 0; l < 32; ++l) votes |= (mask >> l & 1) ? uint32_t(emulator::lanes()[l]) << l : 0;
  emulator::wait_for_lanes(mask);
  return votes;
}
inline int __all_sync(uint32_t mask, int predicate) {
  return __ballot_sync(mask, predicate) == mask;
}
inline int __any_sync(uint32_t mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

// Instructions of the special-function unit: as far off as their manual allows, and 0 of what is
// below the least normal number.
inline float flushed(float x) { return fabsf(x) < 1.17549435e-38f ? copysignf(0.0f, x) : x; }
inline double some_error(float x) {  // in -1 .. 1, by the bits of x
  uint64_t bits = emulator::bits_of(x) * 0x9e3779b97f4a7c15u;
  bits = (bits ^ bits >> 29) * 0xbf58476d1ce4e5b9u;
  return double(int64_t(bits)) * 0x1p-63;
}
inline float approximate(double y, float x, double relative, double absolute = 0) {
  return flushed(float(y + (relative * fabs(y) + absolute) * some_error(x)));
}
inline float approximate_log2(float x) {
  const double y = ::log2(double(flushed(x)));
  if (x == 1.0f || !(fabs(y) < 1e30)) return float(y);
  return fabs(y) < 1 ? approximate(y, x, 0, 0x1.52p-23) : approximate(y, x, 0x1p-22);
}

inline float __fdividef(float x, float y) { return x / y; }
inline float __int_as_float(int x) { return emulator::value_of<float>(uint32_t(x)); }
inline int __float_as_int(float x) { return int(uint32_t(emulator::bits_of(x))); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __popc(uint32_t x) { return __builtin_popcount(x); }
template <class T>
T __ldg(const T* p) {
  return *p;
}

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline float2 make_float2(float x, float y) { return {x, y}; }

#define __CUDACC__ 1
