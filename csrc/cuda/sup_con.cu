// The kernels of sup_con.
#include "cuda/similarity_rows.h"
#include "cuda/sup_con_kernels.h"
#include "sup_con.h"

namespace mcr {
namespace cuda {
namespace {

struct SupCon {
  template <class Team, bool kRunningMax>
  __device__ static void row(const ScaledStripe<float>& stripe, int64_t r,
                             const RowResults<float>& to) {
    MCR_ISA::sup_con_row<Team, kRunningMax>(stripe, r, to);
  }
  template <class Team, bool kRunningMax, class Finish, class Sink>
  __device__ static void weights(const ScaledStripe<float>& stripe, int64_t r, int64_t begin,
                                 int64_t end, const RowWeights<float>& rows, const Finish& finish,
                                 const Sink& sink) {
    MCR_ISA::sup_con_weights<Team, kRunningMax>(stripe, r, begin, end, rows, finish, sink);
  }
};

}  // namespace

const ContrastiveKernels kSupConKernels = {launch_rows<SupCon>, launch_weights<SupCon>, false};

}  // namespace cuda
}  // namespace mcr
