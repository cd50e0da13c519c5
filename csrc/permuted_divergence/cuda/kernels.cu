// The exact kernels over the pairs of permuted_divergence: what those of a band leave, which are
// rows so far apart that their masses leave the range of float32, and shifts that do not go on from
// each other.
#include "cuda/teams.h"
#include "permuted_divergence/cuda/kernels.h"
#include "permuted_divergence/sides.h"

namespace mcr {
namespace cuda {
namespace {

using MCR_ISA::Jsd;

template <class Team, bool kGrad>
__global__ void __launch_bounds__(kThreads<Team>, kBlocks<Team>)
    own_side_kernel(const __grid_constant__ SidesProblem<float> problem) {
  if (problem.skip && *problem.skip) return;
  const int64_t row = team_number<Team>();
  if (row >= problem.rows || !problem.row_has_pairs(row)) return;
  float memory[SideTiles<float>::kCount * Team::kSteps];
  own_side_of<Team, Jsd, kGrad>(problem, row, int64_t(Team::kSteps), memory);
}

template <class Team>
__global__ void __launch_bounds__(kThreads<Team>, kBlocks<Team>)
    donor_side_kernel(const __grid_constant__ SidesProblem<float> problem) {
  if (problem.skip && *problem.skip) return;
  const int64_t row = team_number<Team>();
  const int m = int(blockIdx.y);
  if (row >= problem.rows || !problem.donor_has_pairs(m, row)) return;
  float memory[4 * Team::kSteps];
  donor_side<Team, Jsd>(problem, m, row, int64_t(Team::kSteps), memory);
}

template <class F>
void with_sides_team(int64_t classes, const F& f) {
  if (classes <= 32) return f(DeviceTeam<8, 4>());
  if (classes <= 256) return f(DeviceTeam<32, 8>());
  f(DeviceTeam<512, 8>());
}

template <class Team>
unsigned blocks_of_rows(const SidesProblem<float>& problem) {
  return unsigned((problem.rows + kTeams<Team> - 1) / kTeams<Team>);
}

}  // namespace

void own_side(const SidesProblem<float>& problem, cudaStream_t stream) {
  with_sides_team(problem.classes, [&](auto team) {
    using Team = decltype(team);
    const auto kernel =
        problem.want_grad ? own_side_kernel<Team, true> : own_side_kernel<Team, false>;
    kernel<<<blocks_of_rows<Team>(problem), kThreads<Team>, 0, stream>>>(problem);
  });
}

void donor_side(const SidesProblem<float>& problem, cudaStream_t stream) {
  with_sides_team(problem.classes, [&](auto team) {
    using Team = decltype(team);
    const dim3 grid(blocks_of_rows<Team>(problem), unsigned(problem.modalities));
    donor_side_kernel<Team><<<grid, kThreads<Team>, 0, stream>>>(problem);
  });
}

}  // namespace cuda
}  // namespace mcr
