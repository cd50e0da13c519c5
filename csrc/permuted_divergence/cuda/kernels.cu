// The kernels over the pairs of permuted_divergence.
#include "cuda/teams.h"
#include "permuted_divergence/cuda/kernels.h"
#include "permuted_divergence/sides.h"

namespace mcr {
namespace cuda {
namespace {

// Larger teams are whole blocks; longer tiles leave no register for it.
template <class Team>
constexpr bool kSplits = Team::kLanes <= 32 && Team::kSteps < 8;

template <class Team, class D, bool kGrad>
__global__ void __launch_bounds__(kThreads<Team>, kBlocks<Team>)
    own_side_kernel(const __grid_constant__ SidesProblem<float> problem, int parts) {
  if (problem.skip && *problem.skip) return;
  const auto has_pairs = [&](int64_t row) { return problem.row_has_pairs(row); };
  const auto side = [&](int64_t row, const auto& part) {
    float memory[SideTiles<float>::kCount * Team::kSteps];
    own_side_of<Team, D, kGrad>(problem, row, steps_of<Team>(problem.steps), memory, part);
  };
  with_row_and_part<Team, kSplits<Team>>(problem.rows, parts, has_pairs, side);
}

template <class Team, class D>
__global__ void __launch_bounds__(kThreads<Team>, kBlocks<Team>)
    donor_side_kernel(const __grid_constant__ SidesProblem<float> problem, int parts) {
  if (problem.skip && *problem.skip) return;
  const int m = int(blockIdx.y);
  const auto has_pairs = [&](int64_t row) { return problem.donor_has_pairs(m, row); };
  const auto side = [&](int64_t row, const auto& part) {
    float memory[4 * Team::kSteps];
    donor_side<Team, D>(problem, m, row, steps_of<Team>(problem.steps), memory, part);
  };
  with_row_and_part<Team, kSplits<Team>>(problem.rows, parts, has_pairs, side);
}

// Calls f with the divergence, the team, and the problem with its steps. Few rows take teams that
// can share a row's pairs, up to kMaxSharedClasses.
template <class F>
void with_sides_team(SidesProblem<float> problem, const F& f) {
  const int64_t few = kBusyThreads / 16, classes = problem.classes;
  with_divergence(problem.divergence, [&](auto divergence) {
    const auto call = [&](auto team) {
      problem.steps = steps_for<decltype(team)>(classes);
      f(divergence, team, problem);
    };
    if (problem.rows <= few) {
      if (classes <= 8) return call(DeviceTeam<4, 2>());
      if (classes <= 32) return call(DeviceTeam<8, 4>());
      if (classes <= 64) return call(DeviceTeam<16, 4>());
      if (classes <= 128) return call(DeviceTeam<32, 4>());
      if (classes <= kMaxSharedClasses) return call(DeviceTeam<32, 6>());
    }
    with_team<decltype(divergence)>(classes, call);
  });
}

// Parts of a row's pairs, where `rows` have work at once.
template <class Team>
int parts_for(const SidesProblem<float>& problem, int64_t rows) {
  if (!kSplits<Team>) return 1;
  return parts_of(rows, Team::kLanes, problem.last - problem.first, kTeams<Team>);
}

}  // namespace

void own_side(const SidesProblem<float>& given, cudaStream_t stream) {
  with_sides_team(given, [&](auto divergence, auto team, const auto& problem) {
    using D = decltype(divergence);
    using Team = decltype(team);
    const int parts = parts_for<Team>(problem, problem.rows);
    const unsigned blocks = blocks_of(problem.rows, parts, kTeams<Team>);
    const auto kernel =
        problem.want_grad ? own_side_kernel<Team, D, true> : own_side_kernel<Team, D, false>;
    kernel<<<blocks, kThreads<Team>, 0, stream>>>(problem, parts);
  });
}

void donor_side(const SidesProblem<float>& given, cudaStream_t stream) {
  with_sides_team(given, [&](auto divergence, auto team, const auto& problem) {
    using D = decltype(divergence);
    using Team = decltype(team);
    const int parts = parts_for<Team>(problem, problem.rows * problem.modalities);
    const dim3 grid(blocks_of(problem.rows, parts, kTeams<Team>), unsigned(problem.modalities));
    donor_side_kernel<Team, D><<<grid, kThreads<Team>, 0, stream>>>(problem, parts);
  });
}

}  // namespace cuda
}  // namespace mcr
