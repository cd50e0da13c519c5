// The kernels of row_divergence.
#include <assert.h>

#include "cuda/blocks.h"
#include "cuda/row_divergence_kernels.h"
#include "cuda/teams.h"
#include "row_divergence_pull.h"

namespace mcr {
namespace cuda {
namespace {

// Thread a finds the first of `sorted` that is not below a.
__global__ void find_starts_kernel(const int64_t* sorted, int64_t count, int64_t rows,
                                   int64_t* start) {
  for (int64_t a = first_index(); a <= rows; a += index_step()) {
    int64_t low = 0, high = count;
    while (low < high) {
      const int64_t middle = low + (high - low) / 2;
      if (sorted[middle] < a) {
        low = middle + 1;
      } else {
        high = middle;
      }
    }
    start[a] = low;
    assert((a > 0 || low == 0) && (a < rows || low == count));  // as torch's own indexing
  }
}

template <class Team, class D, bool kGrad>
__global__ void __launch_bounds__(kThreads<Team>, kBlocks<Team>)
    hold_rows_kernel(const __grid_constant__ RowDivergenceProblem<float> problem, int64_t rows,
                     double* row_values, double* row_weights) {
  const int64_t row = team_number<Team>();
  if (row >= rows) return;
  double value = 0, weight = 0;
  float memory[HeldTiles<float>::kCount * Team::kSteps];
  mcr::MCR_ISA::hold_rows<Team, D, kGrad>(problem, row, steps_of<Team>(problem.steps), memory,
                                          value, weight);
  if (!Team::leads()) return;
  row_values[row] = value;
  row_weights[row] = weight;
}

}  // namespace

void find_starts(const int64_t* sorted, int64_t count, int64_t rows, int64_t* start,
                 cudaStream_t stream) {
  find_starts_kernel<<<blocks_for(rows + 1), kBlockThreads, 0, stream>>>(sorted, count, rows,
                                                                         start);
}

void hold_rows(const RowDivergenceProblem<float>& held, int64_t rows, double* row_values,
               double* row_weights, cudaStream_t stream) {
  launch(held, rows,
         [&](auto divergence, auto team, const auto& problem, unsigned blocks, unsigned threads) {
           using D = decltype(divergence);
           using Team = decltype(team);
           if (problem.want_grad) {
             hold_rows_kernel<Team, D, true>
                 <<<blocks, threads, 0, stream>>>(problem, rows, row_values, row_weights);
           } else {
             hold_rows_kernel<Team, D, false>
                 <<<blocks, threads, 0, stream>>>(problem, rows, row_values, row_weights);
           }
         });
}

}  // namespace cuda
}  // namespace mcr
