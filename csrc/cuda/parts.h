// Several teams of a block with the pairs of one row, where the rows alone would leave most of a
// GPU idle.
#pragma once

#include "core/lane.h"

namespace mcr {
namespace cuda {

// Threads that keep every multiprocessor of a large GPU at work.
constexpr int64_t kBusyThreads = int64_t{1} << 16;

// Into how many parts `pairs` of a row are cut, a power of two, of 4 pairs or more: the sizes alone
// decide, so that the sums are the same from run to run. `most` teams share a block.
inline int parts_of(int64_t rows, int64_t lanes, int64_t pairs, int most) {
  int parts = 1;
  while (2 * parts <= most && 8 * parts <= pairs + 1 && 2 * parts * rows * lanes <= kBusyThreads) {
    parts *= 2;
  }
  return parts;
}

// Blocks of `teams` for rows of so many parts.
inline unsigned blocks_of(int64_t rows, int parts, int teams) {
  return unsigned((rows * parts + teams - 1) / teams);
}

// Blocks of kThreads in a row; the teams of one row beside each other.
template <class Team, int kThreadsOfBlock>
struct PartsInTurn {
  static constexpr int kThreads = kThreadsOfBlock, kLanes = Team::kLanes, kSteps = Team::kSteps;
  MCR_FN static int thread() { return int(threadIdx.x); }
  MCR_FN static int part(int parts) { return int(threadIdx.x) / kLanes & (parts - 1); }
  MCR_FN static int apart() { return kLanes; }
};

// This thread's part of its row's pairs. Nothing is kept that can be asked again: the registers are
// the row's.
template <class Place>
struct Parts {
  int parts, part;
  bool live;

  MCR_FN Parts(int count, bool has_row) : parts(count), part(Place::part(count)), live(has_row) {}
  MCR_FN bool leads() const { return live && Place::part(parts) == 0; }
  // In order, whatever the order in which they arrive.
  template <class X>
  MCR_FN void add(X& x) const {
    exchange<1>(&x);
  }
  template <class T>
  MCR_FN void add_tile(T* tile, int64_t) const {
    exchange<Place::kSteps>(tile);
  }

 private:
  template <int kCount, class X>
  MCR_FN void exchange(X* x) const {
    if (parts == 1) return;
    __shared__ X others[kCount][Place::kThreads];
    __syncthreads();  // the sums before these have been read
#pragma unroll
    for (int n = 0; n < kCount; ++n) others[n][Place::thread()] = x[n];
    __syncthreads();
    if (Place::part(parts) != 0) return;
#pragma unroll 4
    for (int p = 1; p < parts; ++p) {
#pragma unroll
      for (int n = 0; n < kCount; ++n) {
        x[n] = x[n] + others[n][Place::thread() + p * Place::apart()];
      }
    }
  }
};

}  // namespace cuda
}  // namespace mcr
