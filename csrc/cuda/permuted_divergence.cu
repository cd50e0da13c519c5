// The kernels over the pairs of permuted_divergence: which team runs a row, by its classes.
//
// A row's tiles are registers: 8 classes a lane at most, so that 9 tiles and the arithmetic fit in
// 128 of them and 16 warps run on a multiprocessor. More classes take more lanes, and beyond 4096
// the tiles are local memory.
#include "cuda/permuted_divergence_kernels.h"
#include "permuted_divergence_pull.h"

namespace mcr {
namespace cuda {
namespace {

constexpr int kMinThreads = 128;

template <class Team>
constexpr int kThreads = Team::kLanes < kMinThreads ? kMinThreads : Team::kLanes;
template <class Team>
constexpr int kBlocks = 512 / kThreads<Team>;  // on a multiprocessor: 512 threads of 128 registers
template <class Team>
constexpr bool kInRegisters = Team::kSteps <= 8;

// This thread's team, counted over the grid.
template <class Team>
__device__ __forceinline__ int64_t team_number() {
  return int64_t(blockIdx.x) * (kThreads<Team> / Team::kLanes) + threadIdx.x / Team::kLanes;
}

// Steps of a row: a constant where the tiles are registers.
template <class Team>
__device__ __forceinline__ int64_t steps_of(const PullProblem<float>& problem) {
  return kInRegisters<Team> ? int64_t(Team::kSteps) : problem.steps;
}

template <class Team, class D, bool kGrad>
__global__ void __launch_bounds__(kThreads<Team>, kBlocks<Team>)
    pull_rows_kernel(const __grid_constant__ PullProblem<float> problem) {
  const int64_t row = team_number<Team>();
  if (row >= problem.rows || (problem.skip && *problem.skip)) return;
  float memory[PullTiles<float>::kCount * Team::kSteps];
  pull_row<Team, D, kGrad>(problem, row, steps_of<Team>(problem), memory);
}

template <class Team, class D>
__global__ void __launch_bounds__(kThreads<Team>, kBlocks<Team>)
    pull_donations_kernel(const __grid_constant__ PullProblem<float> problem) {
  const int64_t row = team_number<Team>();
  if (row >= problem.rows || (problem.skip && *problem.skip)) return;
  float memory[3 * Team::kSteps];
  pull_donations<Team, D>(problem, int(blockIdx.y), row, steps_of<Team>(problem), memory);
}

// Calls f with the team that runs rows of this many classes. The JSD has more of them: its rows are
// the ones that matter, and padding costs them whole special-function instructions.
template <class D, class F>
void with_team(int64_t classes, const F& f) {
  if constexpr (SameType<D, Jsd>::value) {
    if (classes <= 8) return f(DeviceTeam<4, 2>());
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

template <class F>
void with_divergence(DivergenceKind kind, const F& f) {
  switch (kind) {
    case DivergenceKind::kJsd:
      return f(Jsd());
    case DivergenceKind::kBinaryJsd:
      return f(BinaryJsd());
    case DivergenceKind::kSquaredError:
      return f(SquaredError());
  }
}

// Calls f with the divergence, the team, the grid and the threads of a block.
template <class F>
void launch(PullProblem<float> problem, const F& f) {
  with_divergence(problem.divergence, [&](auto divergence) {
    using D = decltype(divergence);
    with_team<D>(problem.classes, [&](auto team) {
      using Team = decltype(team);
      constexpr int kTeams = kThreads<Team> / Team::kLanes;
      problem.steps = (problem.classes + Team::kLanes - 1) / Team::kLanes;
      f(divergence, team, problem, unsigned((problem.rows + kTeams - 1) / kTeams),
        unsigned(kThreads<Team>));
    });
  });
}

}  // namespace

void pull_rows(const PullProblem<float>& pulled, cudaStream_t stream) {
  launch(pulled,
         [&](auto divergence, auto team, const auto& problem, unsigned blocks, unsigned threads) {
           using D = decltype(divergence);
           using Team = decltype(team);
           if (problem.want_grad) {
             pull_rows_kernel<Team, D, true><<<blocks, threads, 0, stream>>>(problem);
           } else {
             pull_rows_kernel<Team, D, false><<<blocks, threads, 0, stream>>>(problem);
           }
         });
}

void pull_donations(const PullProblem<float>& pulled, cudaStream_t stream) {
  launch(pulled,
         [&](auto divergence, auto team, const auto& problem, unsigned blocks, unsigned threads) {
           using D = decltype(divergence);
           using Team = decltype(team);
           const dim3 grid(blocks, unsigned(problem.modalities));
           pull_donations_kernel<Team, D><<<grid, threads, 0, stream>>>(problem);
         });
}

}  // namespace cuda
}  // namespace mcr
