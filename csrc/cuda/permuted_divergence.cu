// The kernels over the pairs of permuted_divergence.
#include "cuda/permuted_divergence_kernels.h"
#include "cuda/teams.h"
#include "permuted_divergence_pull.h"

namespace mcr {
namespace cuda {
namespace {

template <class Team, class D, bool kGrad>
__global__ void __launch_bounds__(kThreads<Team>, kBlocks<Team>)
    pull_rows_kernel(const __grid_constant__ PullProblem<float> problem) {
  const int64_t row = team_number<Team>();
  if (row >= problem.rows || (problem.skip && *problem.skip)) return;
  float memory[PullTiles<float>::kCount * Team::kSteps];
  pull_row<Team, D, kGrad>(problem, row, steps_of<Team>(problem.steps), memory);
}

template <class Team, class D>
__global__ void __launch_bounds__(kThreads<Team>, kBlocks<Team>)
    pull_donations_kernel(const __grid_constant__ PullProblem<float> problem) {
  const int64_t row = team_number<Team>();
  if (row >= problem.rows || (problem.skip && *problem.skip)) return;
  float memory[4 * Team::kSteps];
  pull_donations<Team, D>(problem, int(blockIdx.y), row, steps_of<Team>(problem.steps), memory);
}

}  // namespace

void pull_rows(const PullProblem<float>& pulled, cudaStream_t stream) {
  launch(pulled, pulled.rows,
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
  launch(pulled, pulled.rows,
         [&](auto divergence, auto team, const auto& problem, unsigned blocks, unsigned threads) {
           using D = decltype(divergence);
           using Team = decltype(team);
           const dim3 grid(blocks, unsigned(problem.modalities));
           pull_donations_kernel<Team, D><<<grid, threads, 0, stream>>>(problem);
         });
}

}  // namespace cuda
}  // namespace mcr
