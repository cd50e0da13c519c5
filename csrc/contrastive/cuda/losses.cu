// The kernels of the contrastive losses over rows of similarities.
#include "contrastive/cuda/kernels.h"
#include "contrastive/nt_xent.h"
#include "contrastive/sup_con.h"
#include "cuda/blocks.h"
#include "cuda/teams.h"

namespace mcr {
namespace cuda {
namespace {

using WarpRow = DeviceTeam<32, 1>;
using BlockRow = DeviceTeam<kBlockThreads, 1>;
constexpr int64_t kWarpRows = 1024;  // rows of more columns get a block each

template <class Team, class Loss, bool kRunningMax>
__global__ void __launch_bounds__(kThreads<Team>)
    similarity_rows_kernel(const __grid_constant__ ScaledStripe<float> given,
                           const int64_t* num_present,
                           const __grid_constant__ RowResults<float> to) {
  const int64_t r = team_number<Team>(), a = given.first + r;
  if (r >= given.rows) return;
  ScaledStripe<float> stripe = given;
  stripe.columns = *num_present;
  if (a < stripe.columns) {
    Loss::template row<Team, kRunningMax>(stripe, r, to);
  } else if (Team::leads()) {
    to.loss[a] = 0;
    to.weight[a] = to.max[a] = to.log2_sum[a] = to.c[a] = 0;
  }
}

template <class Loss, bool kRunningMax, class H>
__global__ void __launch_bounds__(kBlockThreads, 4)
    similarity_weights_kernel(const __grid_constant__ ScaledStripe<float> given,
                              const int64_t* num_present,
                              const __grid_constant__ RowWeights<float> rows, const float* h_scale,
                              H* h) {
  const int64_t r = blockIdx.x, present = *num_present, stride = given.stride;
  const int64_t columns = given.first + r < present ? present : 0;
  H* out = h + r * stride;  // may be the row of products itself: every lane reads what it writes
  if (columns > 0) {
    const float scale = *h_scale;
    Loss::template weights<BlockRow, kRunningMax>(
        given, r, 0, columns, rows,
        [&](int64_t j, float x) { return x * given.inverse[given.first_column + j] * scale; },
        [&](int64_t j, float x) { assign(out + j, x); });
  }
  BlockRow::for_columns(columns, stride, [&](int64_t j, auto) { assign(out + j, 0.0f); });
}

template <class Loss>
void launch_rows(const ScaledStripe<float>& stripe, const int64_t* num_present, bool running_max,
                 const RowResults<float>& to, cudaStream_t stream) {
  const auto launch_team = [&](auto team) {
    using Team = decltype(team);
    const unsigned blocks = blocks_of(stripe.rows, 1, kTeams<Team>);
    const auto kernel = running_max ? similarity_rows_kernel<Team, Loss, true>
                                    : similarity_rows_kernel<Team, Loss, false>;
    kernel<<<blocks, kThreads<Team>, 0, stream>>>(stripe, num_present, to);
  };
  if (stripe.stride <= kWarpRows) return launch_team(WarpRow());
  launch_team(BlockRow());
}

template <class Loss>
void launch_weights(const ScaledStripe<float>& stripe, const int64_t* num_present, bool running_max,
                    const RowWeights<float>& rows, const float* h_scale, Storage storage, void* h,
                    cudaStream_t stream) {
  const unsigned blocks = unsigned(stripe.rows);
  with_storage(storage, [&](auto zero) {
    using H = decltype(zero);
    H* to = static_cast<H*>(h);
    const auto kernel = running_max ? similarity_weights_kernel<Loss, true, H>
                                    : similarity_weights_kernel<Loss, false, H>;
    kernel<<<blocks, kBlockThreads, 0, stream>>>(stripe, num_present, rows, h_scale, to);
  });
}

}  // namespace

const ContrastiveKernels kNtXentKernels = {launch_rows<MCR_ISA::NtXent>,
                                           launch_weights<MCR_ISA::NtXent>, true};
const ContrastiveKernels kSupConKernels = {launch_rows<MCR_ISA::SupCon>,
                                           launch_weights<MCR_ISA::SupCon>, false};

}  // namespace cuda
}  // namespace mcr
