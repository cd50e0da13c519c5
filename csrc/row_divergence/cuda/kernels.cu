// The kernels of row_divergence.
#include "cuda/blocks.h"
#include "cuda/teams.h"
#include "row_divergence/cuda/kernels.h"
#include "row_divergence/held.h"

namespace mcr {
namespace cuda {
namespace {

using WarpRow = DeviceTeam<32, 1>;

// A warp has a clean row: it counts what stands before its own perturbed rows, and lists these.
__global__ void __launch_bounds__(kThreads<WarpRow>)
    list_members_kernel(const int64_t* given, int64_t count, int64_t rows, int64_t* start,
                        int64_t* members, double* poison) {
  constexpr uint32_t kAll = 0xffffffffu;
  const int64_t a = team_number<WarpRow>();
  if (a >= rows) return;
  // the ends take what names no row
  const auto key = [&](int64_t r) {
    const int64_t row = given[r];
    return row < 0 ? 0 : row < rows ? row : rows - 1;
  };
  int before = 0;
  bool wrong = false;
#pragma unroll 4
  for (int64_t r = WarpRow::lane(); r < count; r += 32) {
    before += key(r) < a;
    wrong |= given[r] < 0 || given[r] >= rows;
  }
#pragma unroll
  for (int d = 16; d > 0; d /= 2) before += __shfl_xor_sync(kAll, before, d);
  int64_t to = before;
#pragma unroll 4
  for (int64_t first = 0; first < count; first += 32) {
    const int64_t r = first + WarpRow::lane();
    const bool mine = r < count && key(r) == a;
    const uint32_t all = __ballot_sync(kAll, mine);
    if (mine) members[to + __popc(all & ((1u << WarpRow::lane()) - 1u))] = r;
    to += __popc(all);
  }
  wrong = __any_sync(kAll, wrong);
  if (!WarpRow::leads()) return;
  start[a] = before;
  if (a != 0) return;
  start[rows] = count;
  poison[0] = poison[rows + 1] = wrong ? NAN : 0.0;
}

template <class Key>
__global__ void narrow_rows_kernel(const int64_t* given, int64_t count, int64_t rows, Key* keys) {
  for (int64_t r = first_index(); r < count; r += index_step()) {
    keys[r] = given[r] >= 0 && given[r] < rows ? Key(given[r]) : Key(-1);
  }
}

// Thread a finds the first of `sorted` that is not below a.
template <class Key>
__global__ void find_starts_kernel(const Key* sorted, int64_t count, int64_t rows, int64_t* start,
                                   double* poison) {
  for (int64_t a = first_index(); a <= rows; a += index_step()) {
    // the ends take what names no row
    start[a] = a == 0 ? 0 : a == rows ? count : find_bound<false>(sorted, count, a);
  }
  if (first_index() != 0) return;
  const bool wrong = count > 0 && (sorted[0] < 0 || sorted[count - 1] >= rows);
  poison[0] = wrong ? NAN : 0.0;
  poison[rows + 1] = wrong ? NAN : 0.0;
}

// Fills a team's tile with a row of any storage: which one it is, is asked once a row and not in
// the kernel's type, for there are many kernels.
template <class Team>
struct RowsOf {
  const GivenRows& rows;
  int64_t classes;

  __device__ __forceinline__ void operator()(int64_t row, int64_t steps, float fill, float limit,
                                             float* tile) const {
    if (rows.storage == Storage::kFloat) {
      fill_tile<float>(row, steps, fill, limit, tile);
    } else if (rows.storage == Storage::kBfloat16) {
      fill_tile<__nv_bfloat16>(row, steps, fill, limit, tile);
    } else {
      fill_tile<__half>(row, steps, fill, limit, tile);
    }
  }

 private:
  template <class In>
  __device__ __forceinline__ void fill_tile(int64_t row, int64_t steps, float fill, float limit,
                                            float* tile) const {
    const In* from = static_cast<const In*>(rows.data) + row * classes;
#pragma unroll
    for (int64_t n = 0; n < steps; ++n) {
      const int c = int(n) * Team::kLanes + Team::lane();
      tile[n] = c < classes ? MCR_ISA::saturated(to_float(from[c]), limit) : fill;
    }
  }
};

// Larger teams are whole blocks.
template <class Team>
constexpr bool kSplits = Team::kLanes <= 32;
// Whether there are registers for the next row: a block of 16 warps has none left beside the two
// outcomes of a class.
template <class Team, class D>
constexpr bool kAhead = kInRegisters<Team> && !(D::kTraits.binary && Team::kLanes > 32);

template <class Team, class D, bool kGrad>
__global__ void __launch_bounds__(kThreads<Team>, kBlocks<Team>)
    hold_rows_kernel(const __grid_constant__ RowDivergenceProblem<float> problem,
                     const __grid_constant__ GivenRows perturbed,
                     const __grid_constant__ GivenRows clean, int64_t rows, int parts,
                     double* row_values, double* row_weights) {
  const auto hold = [&](int64_t row, const auto& part) {
    double value = 0, weight = 0;
    float memory[HeldTiles<float, kAhead<Team, D>>::kCount * Team::kSteps];
    mcr::MCR_ISA::hold_rows<Team, D, kGrad, kAhead<Team, D>>(
        problem, RowsOf<Team>{perturbed, problem.classes}, RowsOf<Team>{clean, problem.classes},
        row, steps_of<Team>(problem.steps), memory, value, weight, part);
    if (!Team::leads() || !part.leads()) return;
    row_values[row] = value;
    row_weights[row] = weight;
  };
  const auto always = [](int64_t) { return true; };
  with_row_and_part<Team, kSplits<Team>>(rows, parts, always, hold);
}

}  // namespace

void list_members(const int64_t* given, int64_t count, int64_t rows, int64_t* start,
                  int64_t* members, double* poison, cudaStream_t stream) {
  const unsigned blocks = blocks_of(rows, 1, kTeams<WarpRow>);
  list_members_kernel<<<blocks, kThreads<WarpRow>, 0, stream>>>(given, count, rows, start, members,
                                                                poison);
}

template <class Key>
void narrow_rows(const int64_t* given, int64_t count, int64_t rows, Key* keys,
                 cudaStream_t stream) {
  narrow_rows_kernel<<<blocks_for(count), kBlockThreads, 0, stream>>>(given, count, rows, keys);
}
template void narrow_rows(const int64_t*, int64_t, int64_t, int16_t*, cudaStream_t);
template void narrow_rows(const int64_t*, int64_t, int64_t, int32_t*, cudaStream_t);

template <class Key>
void find_starts(const Key* sorted, int64_t count, int64_t rows, int64_t* start, double* poison,
                 cudaStream_t stream) {
  find_starts_kernel<<<blocks_for(rows + 1), kBlockThreads, 0, stream>>>(sorted, count, rows, start,
                                                                         poison);
}
template void find_starts(const int16_t*, int64_t, int64_t, int64_t*, double*, cudaStream_t);
template void find_starts(const int32_t*, int64_t, int64_t, int64_t*, double*, cudaStream_t);

void hold_rows(const RowDivergenceProblem<float>& held, const GivenRows& perturbed,
               const GivenRows& clean, int64_t rows, int64_t members, double* row_values,
               double* row_weights, cudaStream_t stream) {
  with_divergence(held.divergence, [&](auto divergence) {
    using D = decltype(divergence);
    with_team<D>(held.classes, [&](auto team) {
      using Team = decltype(team);
      RowDivergenceProblem<float> problem = held;
      problem.steps = steps_for<Team>(held.classes);
      const int teams = kTeams<Team>;
      const int parts = kSplits<Team> ? parts_of(rows, Team::kLanes, members / rows, teams) : 1;
      const auto kernel =
          held.want_grad ? hold_rows_kernel<Team, D, true> : hold_rows_kernel<Team, D, false>;
      kernel<<<blocks_of(rows, parts, teams), kThreads<Team>, 0, stream>>>(
          problem, perturbed, clean, rows, parts, row_values, row_weights);
    });
  });
}

}  // namespace cuda
}  // namespace mcr
