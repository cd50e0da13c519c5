// The row algorithms of the CUDA kernels on teams of the host: a lane of the GPU's team is an
// element of a vector here, so every step is taken by all lanes at once. Compiled once for each
// team, with MCR_VEC_BYTES for its lanes.
#include <vector>

#include "permuted_divergence_pull.h"
#include "row_divergence_pull.h"
#include "teams.h"

namespace mcr {
namespace MCR_ISA {
namespace {

// As DeviceTeam: the far terms are for the CPU.
struct Team : RowTeam<float> {
  static constexpr bool kFarTerms = false;
};

// Tiles full of NaN: what a row does not write itself must not show.
std::vector<float> dirty(int64_t count) { return std::vector<float>(count, NAN); }

template <class D, bool kGrad>
void run(const PullProblem<float>& pr) {
  constexpr int W = kWidth<float>;
  for (int64_t i = 0; i < pr.rows; ++i) {
    std::vector<float> memory = dirty(PullTiles<float>::kCount * pr.steps * W);
    pull_row<Team, D, kGrad>(pr, i, pr.steps, memory.data());
  }
  for (int64_t mj = 0; kGrad && mj < pr.modalities * pr.rows; ++mj) {
    std::vector<float> memory = dirty(4 * pr.steps * W);
    pull_donations<Team, D>(pr, int(mj / pr.rows), mj % pr.rows, pr.steps, memory.data());
  }
}

template <class D>
void run_chunks(PullProblem<float> pr, int64_t chunk, int64_t spare_steps) {
  constexpr int W = kWidth<float>;
  pr.steps = (pr.classes + W - 1) / W + spare_steps;
  std::vector<float> pairs = dirty(2 * pr.num_subsets * pr.rows * chunk);
  std::vector<float> clean = dirty(pr.rows * pr.classes);
  pr.pairs = pairs.data();
  pr.clean = clean.data();
  for (pr.first = 0; pr.first < pr.permutations; pr.first = pr.last) {
    pr.last = pr.first + chunk < pr.permutations ? pr.first + chunk : pr.permutations;
    if (pr.want_grad) {
      run<D, true>(pr);
    } else {
      run<D, false>(pr);
    }
  }
}

template <class D>
void run_held(RowDivergenceProblem<float> pr, int64_t rows, int64_t spare_steps, double* sums) {
  constexpr int W = kWidth<float>;
  pr.steps = (pr.classes + W - 1) / W + spare_steps;
  for (int64_t i = 0; i < rows; ++i) {
    std::vector<float> memory = dirty(HeldTiles<float>::kCount * pr.steps * W);
    if (pr.want_grad) {
      hold_rows<Team, D, true>(pr, i, pr.steps, memory.data(), sums[0], sums[1]);
    } else {
      hold_rows<Team, D, false>(pr, i, pr.steps, memory.data(), sums[0], sums[1]);
    }
  }
}

}  // namespace

void hold(const RowDivergenceProblem<float>& pr, int64_t rows, int64_t spare_steps, double* sums) {
  switch (pr.divergence) {
    case DivergenceKind::kJsd:
      return run_held<Jsd>(pr, rows, spare_steps, sums);
    case DivergenceKind::kBinaryJsd:
      return run_held<BinaryJsd>(pr, rows, spare_steps, sums);
    case DivergenceKind::kSquaredError:
      return run_held<SquaredError>(pr, rows, spare_steps, sums);
  }
}

void pull(const PullProblem<float>& pr, int64_t chunk, int64_t spare_steps) {
  switch (pr.divergence) {
    case DivergenceKind::kJsd:
      return run_chunks<Jsd>(pr, chunk, spare_steps);
    case DivergenceKind::kBinaryJsd:
      return run_chunks<BinaryJsd>(pr, chunk, spare_steps);
    case DivergenceKind::kSquaredError:
      return run_chunks<SquaredError>(pr, chunk, spare_steps);
  }
}

}  // namespace MCR_ISA
}  // namespace mcr
