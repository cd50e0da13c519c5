// The kernels of permuted_divergence_far.h.
#include "cuda/far_teams.h"
#include "cuda/permuted_divergence_kernels.h"
#include "permuted_divergence_far.h"

namespace mcr {
namespace cuda {
namespace {

template <class Team, bool kGrad, bool kTable>
__global__ void __launch_bounds__(Team::kThreads, Team::kBlocks)
    pull_far_rows_kernel(const __grid_constant__ FarProblem<float> problem) {
  if (problem.skip && *problem.skip) return;
  const int64_t row =
      int64_t(blockIdx.x) * (Team::kThreads / Team::kLanes) + threadIdx.x / Team::kLanes;
  const bool live = row < problem.rows;
  float memory[FarTiles<float>::kCount * Team::kSteps];
  pull_far_row<Team, kGrad, kTable>(problem, live ? row : problem.rows - 1, live,
                                    int64_t(Team::kSteps), memory);
}

template <bool kTable>
__global__ void __launch_bounds__(ColumnTeam::kThreads)
    pull_far_donations_kernel(const __grid_constant__ FarProblem<float> problem) {
  const int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  if (row >= problem.rows || (problem.skip && *problem.skip)) return;
  float memory[6 * ColumnTeam::kSteps];
  pull_far_donations<ColumnTeam, kTable>(problem, row, int64_t(ColumnTeam::kSteps), memory);
}

// Calls f with the team for rows of this many classes. Many classes a lane, because a lane's share
// of the sums over the lanes and of finding the donor is the same however few it has.
template <class F>
auto with_far_team(int64_t classes, const F& f) {
  if (classes <= 8) return f(PaddedTeam<4, 2>());
  if (classes <= 32) return f(PaddedTeam<4, 8>());
  if (classes <= 64) return f(PaddedTeam<4, 16>());
  if (classes <= 112) return f(PaddedTeam<4, 28>());
  if (classes <= 128) return f(PaddedTeam<8, 16>());
  if (classes <= 192) return f(PaddedTeam<8, 24>());
  if (classes <= 256) return f(PaddedTeam<16, 16>());
  if (classes <= 384) return f(PaddedTeam<16, 24>());
  if (classes <= 512) return f(PaddedTeam<32, 16>());
  if (classes <= 768) return f(PaddedTeam<32, 24>());
  return f(PaddedTeam<32, 32>());
}

template <class Team>
void launch_rows(const FarProblem<float>& pr, cudaStream_t stream) {
  constexpr int kTeams = Team::kThreads / Team::kLanes;
  const unsigned blocks = unsigned((pr.rows + kTeams - 1) / kTeams);
  const auto kernel = pr.want_grad ? (pr.table ? pull_far_rows_kernel<Team, true, true>
                                               : pull_far_rows_kernel<Team, true, false>)
                                   : (pr.table ? pull_far_rows_kernel<Team, false, true>
                                               : pull_far_rows_kernel<Team, false, false>);
  kernel<<<blocks, Team::kThreads, 0, stream>>>(pr);
}

}  // namespace

int64_t far_row_stride(int64_t classes) {
  return with_far_team(
      classes, [](auto team) { return int64_t(decltype(team)::kLanes) * decltype(team)::kSteps; });
}

void pull_far_rows(const FarProblem<float>& pr, cudaStream_t stream) {
  with_far_team(pr.classes, [&](auto team) { launch_rows<decltype(team)>(pr, stream); });
}

void pull_far_donations(const FarProblem<float>& pr, cudaStream_t stream) {
  const unsigned columns = unsigned(pr.row_stride / ColumnTeam::kSteps);
  const dim3 threads(columns, ColumnTeam::kThreads / columns);
  const unsigned blocks = unsigned((pr.rows + threads.y - 1) / threads.y);
  if (pr.table) {
    pull_far_donations_kernel<true><<<blocks, threads, 0, stream>>>(pr);
  } else {
    pull_far_donations_kernel<false><<<blocks, threads, 0, stream>>>(pr);
  }
}

}  // namespace cuda
}  // namespace mcr
