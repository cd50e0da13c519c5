// The kernel over the pairs of a small batch. No block waits for another: the last one to finish
// adds up what all of them left, in a fixed order.
#include "cuda/blocks.h"
#include "cuda/teams.h"
#include "permuted_divergence/cuda/kernels.h"
#include "permuted_divergence/small.h"

namespace mcr {
namespace cuda {
namespace {

// Few blocks on a multiprocessor, so that nobody is short of registers.
constexpr int kSmallThreads = kMinThreads, kSmallBlocks = 2;

// What a subset's pairs weigh together, known to thread 0.
__device__ double weight_of(const SmallPairs& batch, uint32_t subset) {
  double sum = 0;
  for (int64_t n = threadIdx.x; n < batch.rows * batch.permutations; n += kSmallThreads) {
    const int64_t a = n % batch.rows, k = n / batch.rows;
    if (batch.may_drop && !batch.keeps(subset, k, a)) continue;
    sum += batch.row_weight ? double(batch.row_weight[a]) : 1.0;
  }
  return block_sum<kSmallThreads>(sum);
}

// factors [S]: upstream over what the pairs weigh. Returns NaN where some donors were no
// permutation, else 0.
__device__ float find_factors(const SmallPairs& batch, float* factors) {
  bool wrong = false;
  for (int64_t n = threadIdx.x; n < batch.lines; n += kSmallThreads) {
    wrong |= isnan(batch.poison[n]);
  }
  const float poison = __syncthreads_or(wrong) ? NAN : 0.0f;
  for (int s = 0; s < batch.num_subsets; ++s) {
    const double sum = batch.pairs != 0 ? batch.pairs : weight_of(batch, batch.members.bits[s]);
    if (threadIdx.x != 0) continue;
    const double upstream = batch.upstream ? double(batch.upstream[s]) : 1.0;
    factors[s] = (sum != 0 ? float(upstream / (sum * batch.terms)) : 0.0f) + poison;
  }
  __syncthreads();
  return poison;
}

__device__ void scale_units(const SmallPairs& batch) {
  const int64_t size = batch.modalities * batch.rows * batch.classes;
  const int64_t block = int64_t(blockIdx.y) * gridDim.x + blockIdx.x;
  const int64_t first = block * kSmallThreads + threadIdx.x;
  const int64_t step = int64_t(gridDim.x) * gridDim.y * kSmallThreads;
  for (int64_t n = first; n < size; n += step) {
    assign_as(batch.storage, batch.to, n, batch.upstream[0] * batch.unit[n]);
  }
  for (int64_t c = first; c < batch.classes; c += step) {
    assign_as(batch.of_bias, batch.to_bias, c, batch.upstream[0] * batch.unit_bias[c]);
  }
}

// The sums over the rows, by the block that finishes last.
template <bool kGrad>
__device__ void add_up(const SmallPairs& batch, float poison) {
  __shared__ bool last;
  __threadfence();  // what this block has written is there before it counts
  __syncthreads();
  if (threadIdx.x == 0) {
    last = atomicAdd(batch.finished, 1) + 1 == int(gridDim.x * gridDim.y);
  }
  __syncthreads();
  if (!last) return;
  __threadfence();
  const int lane = int(threadIdx.x) % 32, warps = kSmallThreads / 32;
  for (int s = int(threadIdx.x) / 32; batch.values && s < batch.num_subsets; s += warps) {
    double sum = 0;
    for (int64_t a = lane; a < batch.rows; a += 32) sum += batch.row_values[s * batch.rows + a];
    for (int d = 16; d > 0; d /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, d);
    if (lane == 0) batch.values[s] = float(sum) + poison;
  }
  for (int64_t c = threadIdx.x; kGrad && c < batch.classes; c += kSmallThreads) {
    double sum = 0;
    for (int64_t a = 0; batch.grad_bias_rows && a < batch.rows; ++a) {
      sum += double(batch.grad_bias_rows[a * batch.classes + c]);
    }
    assign_as(batch.of_bias, batch.to_bias, c, float(sum) + poison);
  }
}

// Blocks [rows, modalities]; without a gradient one modality's.
template <class Team, class D, bool kGrad>
__global__ void __launch_bounds__(kSmallThreads, kSmallBlocks)
    small_sides_kernel(const __grid_constant__ SmallPairs batch, int parts) {
  __shared__ float factors[kMaxSubsets];
  if (batch.upstream && all_equal(batch.upstream, batch.num_subsets)) return scale_units(batch);
  const float poison = find_factors(batch, factors);
  SidesProblem<float> problem = batch;
  problem.factors = factors;
  constexpr int64_t kSteps = Team::kSteps;
  float memory[(SideTiles<float>::kCount + 1) * kSteps];
  const SideTiles<float> tile(memory, kSteps);
  float* total = memory + SideTiles<float>::kCount * kSteps;
  const int64_t at =
      int64_t(blockIdx.x) * (kTeams<Team> / parts) + int(threadIdx.x) / Team::kLanes / parts;
  const int64_t row = at < batch.rows ? at : batch.rows - 1;
  const Parts<PartsInTurn<Team, kSmallThreads>> part(parts, at < batch.rows);
  const int m = int(blockIdx.y);
  clear(total, kSteps);
  small_own_side<Team, D, kGrad>(problem, m, row, kSteps, tile, total, part);
  if constexpr (kGrad) {
    small_donor_side<Team, D>(problem, m, row, kSteps, tile, part);
    if (part.leads()) {
      const int64_t at_row = batch.order ? batch.order[row] : row;
      const int64_t to = (m * batch.rows + at_row) * batch.classes;
#pragma unroll
      for (int n = 0; n < int(kSteps); ++n) {
        const int c = n * Team::kLanes + Team::lane();
        const float x = total[n] + tile.u_sum[n] + poison;
        if (c < int(batch.classes)) assign_as(batch.storage, batch.to, to + c, x);
      }
    }
  }
  add_up<kGrad>(batch, poison);
}

template <class F>
void with_small_team(int64_t classes, const F& f) {
  if (classes <= 8) return f(DeviceTeam<4, 2>());
  if (classes <= 32) return f(DeviceTeam<8, 4>());
  if (classes <= 64) return f(DeviceTeam<16, 4>());
  f(DeviceTeam<32, 6>());
}

}  // namespace

void small_sides(const SmallPairs& batch, cudaStream_t stream) {
  MCR_ISA::with_divergence(batch.divergence, [&](auto divergence) {
    with_small_team(batch.classes, [&](auto team) {
      using D = decltype(divergence);
      using Team = decltype(team);
      const int64_t wide = batch.want_grad ? batch.modalities : 1;
      const int parts = parts_of(batch.rows * wide, Team::kLanes, batch.permutations, kTeams<Team>);
      const dim3 grid(blocks_of(batch.rows, parts, kTeams<Team>), unsigned(wide));
      const auto kernel =
          batch.want_grad ? small_sides_kernel<Team, D, true> : small_sides_kernel<Team, D, false>;
      kernel<<<grid, kSmallThreads, 0, stream>>>(batch, parts);
    });
  });
}

}  // namespace cuda
}  // namespace mcr
