// Teams of lanes that run a row of the divergences.
//
// A row's tiles are registers: 8 classes a lane at most, so that 9 tiles and the arithmetic fit in
// 128 of them and 16 warps run on a multiprocessor.
#pragma once

#include "cuda/parts.h"
#include "divergence/divergence.h"

namespace mcr {
namespace cuda {

constexpr int kMinThreads = 128;

template <class Team>
constexpr int kThreads = Team::kLanes < kMinThreads ? kMinThreads : Team::kLanes;
template <class Team>
constexpr int kBlocks = 512 / kThreads<Team>;  // on a multiprocessor: 512 threads of 128 registers
template <class Team>
constexpr int kTeams = kThreads<Team> / Team::kLanes;  // of a block

// This thread's team, counted over the grid.
template <class Team>
__device__ __forceinline__ int64_t team_number() {
  return int64_t(blockIdx.x) * kTeams<Team> + threadIdx.x / Team::kLanes;
}

}  // namespace cuda
}  // namespace mcr
