// The kernels of far.h.
#include <algorithm>

#include "cuda/parts.h"
#include "permuted_divergence/cuda/far_teams.h"
#include "permuted_divergence/cuda/kernels.h"
#include "permuted_divergence/far.h"

namespace mcr {
namespace cuda {
namespace {

template <class Team, bool kGrad, bool kTable>
__global__ void __launch_bounds__(Team::kThreads, Team::kBlocks)
    far_own_side_kernel(const __grid_constant__ FarProblem<float> problem, int parts) {
  if (problem.skip && *problem.skip) return;
  const int teams = int(blockDim.x) / Team::kLanes, team = int(threadIdx.x) / Team::kLanes;
  const int64_t row = int64_t(blockIdx.x) * (teams / parts) + team / parts;
  const bool live = row < problem.rows;
  if (Team::kLanes == 32 && !Team::kSplits && !live) return;  // nobody has to keep step with it
  const Parts<PartsInTurn<Team, Team::kThreads>> part(Team::kSplits ? parts : 1, live);
  float memory[FarTiles<float>::kCount * Team::kSteps];
  far_own_side_of<Team, kGrad, kTable>(problem, live ? row : problem.rows - 1,
                                       int64_t(Team::kSteps), memory, part);
}

// Blocks of threads [columns, rows, parts].
template <bool kTable>
__global__ void __launch_bounds__(ColumnTeam::kThreads)
    far_donor_side_kernel(const __grid_constant__ FarProblem<float> problem) {
  if (problem.skip && *problem.skip) return;
  const int64_t row = int64_t(blockIdx.x) * blockDim.y + threadIdx.y;
  const bool live = row < problem.rows;
  const Parts<PartsInLayers<ColumnTeam>> part(int(blockDim.z), live);
  float memory[6 * ColumnTeam::kSteps];
  far_donor_side<ColumnTeam, kTable>(problem, live ? row : problem.rows - 1,
                                     int64_t(ColumnTeam::kSteps), memory, part);
}

// Whether rows of so many lanes are a block of 256 threads for every multiprocessor.
bool fills(int64_t rows, int lanes) { return rows * lanes >= kBusyThreads / 2; }

// Calls f with the team for this many rows of as many classes. Many classes a lane, because a
// lane's share of the sums over the lanes and of finding the donor is the same however few it has:
// but no more than 16, where teams can share a row's pairs, for rows that alone leave a GPU idle.
template <class F>
auto with_far_team(int64_t rows, int64_t classes, const F& f) {
  if (classes <= 8) return f(PaddedTeam<4, 2>());
  if (classes <= 32) return f(PaddedTeam<4, 8>());
  if (classes <= 64) return f(PaddedTeam<4, 16>());
  if (classes <= 112 && fills(rows, 4)) return f(PaddedTeam<4, 28>());
  if (classes <= 128) return f(PaddedTeam<8, 16>());
  if (classes <= 192 && fills(rows, 8)) return f(PaddedTeam<8, 24>());
  if (classes <= 256) return f(PaddedTeam<16, 16>());
  if (classes <= 384 && fills(rows, 16)) return f(PaddedTeam<16, 24>());
  if (classes <= 512) return f(PaddedTeam<32, 16>());
  if (classes <= 768) return f(PaddedTeam<32, 24>());
  return f(PaddedTeam<32, 32>());
}

template <class Team>
void launch_rows(const FarProblem<float>& pr, cudaStream_t stream) {
  // Rows that neither fill a GPU nor share their pairs are a block each.
  const bool alone = !Team::kSplits && !fills(pr.rows, Team::kLanes);
  const int threads = alone ? 32 : Team::kThreads, teams = threads / Team::kLanes;
  const int64_t pairs = pr.last - pr.first;
  int parts = Team::kSplits ? parts_of(pr.rows, Team::kLanes, pairs, teams) : 1;
  if (pairs > parts * kFarRun) parts = 1;
  const unsigned blocks = blocks_of(pr.rows, parts, teams);
  const auto kernel = pr.want_grad ? (pr.table ? far_own_side_kernel<Team, true, true>
                                               : far_own_side_kernel<Team, true, false>)
                                   : (pr.table ? far_own_side_kernel<Team, false, true>
                                               : far_own_side_kernel<Team, false, false>);
  kernel<<<blocks, threads, 0, stream>>>(pr, parts);
}

}  // namespace

int64_t far_row_stride(int64_t rows, int64_t classes) {
  return with_far_team(rows, classes, [](auto team) {
    return int64_t(decltype(team)::kLanes) * decltype(team)::kSteps;
  });
}

void far_own_side(const FarProblem<float>& pr, cudaStream_t stream) {
  with_far_team(pr.rows, pr.classes, [&](auto team) { launch_rows<decltype(team)>(pr, stream); });
}

void far_donor_side(const FarProblem<float>& pr, cudaStream_t stream) {
  const int columns = int(pr.row_stride / ColumnTeam::kSteps);
  const int teams = ColumnTeam::kThreads / columns;
  constexpr int kMaxParts = 64;  // of a block's third dimension
  const int parts = parts_of(pr.rows, columns, pr.last - pr.first, std::min(teams, kMaxParts));
  // Few rows are spread over more blocks, of a warp at least.
  constexpr int64_t kBlocks = 264;
  int64_t rows = std::min<int64_t>(teams / parts, (pr.rows + kBlocks - 1) / kBlocks);
  rows = std::max<int64_t>(rows, (32 + columns * parts - 1) / (columns * parts));
  const dim3 threads(columns, unsigned(rows), unsigned(parts));
  const unsigned blocks = blocks_of(pr.rows, 1, int(rows));
  const auto kernel = pr.table ? far_donor_side_kernel<true> : far_donor_side_kernel<false>;
  kernel<<<blocks, threads, 0, stream>>>(pr);
}

}  // namespace cuda
}  // namespace mcr
