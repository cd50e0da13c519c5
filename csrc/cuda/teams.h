// Which team runs a row of the divergences, by its classes.
//
// A row's tiles are registers: 8 classes a lane at most, so that 9 tiles and the arithmetic fit in
// 128 of them and 16 warps run on a multiprocessor. More classes take more lanes, and beyond 4096
// the tiles are local memory.
#pragma once

#include "cuda/parts.h"
#include "cuda/sums.h"
#include "divergence/divergence.h"
#include "divergence/kind.h"

namespace mcr {
namespace cuda {

constexpr int kMinThreads = 128;

template <class Team>
constexpr int kThreads = Team::kLanes < kMinThreads ? kMinThreads : Team::kLanes;
template <class Team>
constexpr int kBlocks = 512 / kThreads<Team>;  // on a multiprocessor: 512 threads of 128 registers
template <class Team>
constexpr bool kInRegisters = Team::kSteps <= 8;

template <class Team>
constexpr int kTeams = kThreads<Team> / Team::kLanes;  // of a block

// This thread's team, counted over the grid.
template <class Team>
__device__ __forceinline__ int64_t team_number() {
  return int64_t(blockIdx.x) * kTeams<Team> + threadIdx.x / Team::kLanes;
}

// Steps of a row: a constant where the tiles are registers.
template <class Team>
__device__ __forceinline__ int64_t steps_of(int64_t steps) {
  return kInRegisters<Team> ? int64_t(Team::kSteps) : steps;
}

// Calls f with the team that runs rows of this many classes. The JSD has more of them: its rows are
// the ones that matter, and padding costs them whole special-function instructions.
template <class D, class F>
void with_team(int64_t classes, const F& f) {
  if constexpr (D::kTraits.softmax) {
    if (classes <= 8) return f(DeviceTeam<4, 2>());
    if (classes <= 32) return f(DeviceTeam<8, 4>());
    if (classes > 32 && classes <= 64) return f(DeviceTeam<8, 8>());
    if (classes > 64 && classes <= 128) return f(DeviceTeam<32, 4>());
    if (classes > 128 && classes <= 192) return f(DeviceTeam<32, 6>());
    if (classes > 256 && classes <= 512) return f(DeviceTeam<128, 4>());
    if (classes > 512 && classes <= 1024) return f(DeviceTeam<128, 8>());
  }
  if (classes <= 32) return f(DeviceTeam<4, 8>());
  if (classes <= 256) return f(DeviceTeam<32, 8>());
  if (classes <= 4096) return f(DeviceTeam<512, 8>());
  f(DeviceTeam<512, int(kMaxClasses / 512)>());
}

using MCR_ISA::with_divergence;

template <class Team>
int64_t steps_for(int64_t classes) {
  return (classes + Team::kLanes - 1) / Team::kLanes;
}

// Calls f with this thread's row of `rows`, if has_work(row), and its part of the row's pairs: one
// of `parts` with kShares, which takes teams of a warp at most.
template <class Team, bool kShares, class Has, class F>
__device__ __forceinline__ void with_row_and_part(int64_t rows, int parts, const Has& has_work,
                                                  const F& f) {
  if constexpr (kShares) {
    const int64_t row =
        int64_t(blockIdx.x) * (kTeams<Team> / parts) + int(threadIdx.x) / Team::kLanes / parts;
    const bool live = row < rows && has_work(row);
    if (parts == 1 ? !live : !__syncthreads_or(live)) return;
    f(live ? row : rows - 1, Parts<PartsInTurn<Team, kThreads<Team>>>(parts, live));
  } else {
    const int64_t row = team_number<Team>();
    if (row < rows && has_work(row)) f(row, Whole());
  }
}

}  // namespace cuda
}  // namespace mcr
