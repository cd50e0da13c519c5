// The kernels over the pairs of permuted_divergence.
#include "cuda/teams.h"
#include "permuted_divergence/cuda/kernels.h"
#include "permuted_divergence/pull.h"

namespace mcr {
namespace cuda {
namespace {

// Larger teams are whole blocks; longer tiles leave no register for it.
template <class Team>
constexpr bool kSplits = Team::kLanes <= 32 && Team::kSteps < 8;

template <class Team, class D, bool kGrad>
__global__ void __launch_bounds__(kThreads<Team>, kBlocks<Team>)
    pull_rows_kernel(const __grid_constant__ PullProblem<float> problem, int parts) {
  if (problem.skip && *problem.skip) return;
  const auto has_pairs = [&](int64_t row) { return problem.row_has_pairs(row); };
  const auto pull = [&](int64_t row, const auto& part) {
    float memory[PullTiles<float>::kCount * Team::kSteps];
    pull_row<Team, D, kGrad>(problem, row, steps_of<Team>(problem.steps), memory, part);
  };
  with_row_and_part<Team, kSplits<Team>>(problem.rows, parts, has_pairs, pull);
}

template <class Team, class D>
__global__ void __launch_bounds__(kThreads<Team>, kBlocks<Team>)
    pull_donations_kernel(const __grid_constant__ PullProblem<float> problem, int parts) {
  if (problem.skip && *problem.skip) return;
  const int m = int(blockIdx.y);
  const auto has_pairs = [&](int64_t row) { return problem.donor_has_pairs(m, row); };
  const auto pull = [&](int64_t row, const auto& part) {
    float memory[4 * Team::kSteps];
    pull_donations<Team, D>(problem, m, row, steps_of<Team>(problem.steps), memory, part);
  };
  with_row_and_part<Team, kSplits<Team>>(problem.rows, parts, has_pairs, pull);
}

// Calls f with the divergence, the team, and the problem with its steps. Few rows take teams that
// can share a row's pairs, up to kMaxSharedClasses.
template <class F>
void with_pull_team(PullProblem<float> problem, const F& f) {
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
int parts_for(const PullProblem<float>& problem, int64_t rows) {
  if (!kSplits<Team>) return 1;
  return parts_of(rows, Team::kLanes, problem.last - problem.first, kTeams<Team>);
}

}  // namespace

void pull_rows(const PullProblem<float>& pulled, cudaStream_t stream) {
  with_pull_team(pulled, [&](auto divergence, auto team, const auto& problem) {
    using D = decltype(divergence);
    using Team = decltype(team);
    const int parts = parts_for<Team>(problem, problem.rows);
    const unsigned blocks = blocks_of(problem.rows, parts, kTeams<Team>);
    if (problem.want_grad) {
      pull_rows_kernel<Team, D, true><<<blocks, kThreads<Team>, 0, stream>>>(problem, parts);
    } else {
      pull_rows_kernel<Team, D, false><<<blocks, kThreads<Team>, 0, stream>>>(problem, parts);
    }
  });
}

void pull_donations(const PullProblem<float>& pulled, cudaStream_t stream) {
  with_pull_team(pulled, [&](auto divergence, auto team, const auto& problem) {
    using D = decltype(divergence);
    using Team = decltype(team);
    const int parts = parts_for<Team>(problem, problem.rows * problem.modalities);
    const dim3 grid(blocks_of(problem.rows, parts, kTeams<Team>), unsigned(problem.modalities));
    pull_donations_kernel<Team, D><<<grid, kThreads<Team>, 0, stream>>>(problem, parts);
  });
}

}  // namespace cuda
}  // namespace mcr
