// The kernels of nt_xent.
#include "cuda/nt_xent_kernels.h"
#include "cuda/similarity_rows.h"
#include "nt_xent.h"

namespace mcr {
namespace cuda {
namespace {

struct NtXent {
  template <class Team, bool kRunningMax>
  __device__ static void row(const ScaledStripe<float>& stripe, int64_t r,
                             const RowResults<float>& to) {
    MCR_ISA::nt_xent_row<Team, kRunningMax>(stripe, r, to);
  }
  template <class Team, bool kRunningMax, class Finish, class Sink>
  __device__ static void weights(const ScaledStripe<float>& stripe, int64_t r, int64_t begin,
                                 int64_t end, const RowWeights<float>& rows, const Finish& finish,
                                 const Sink& sink) {
    MCR_ISA::nt_xent_weights<Team, kRunningMax>(stripe, r, begin, end, rows, finish, sink);
  }
};

}  // namespace

const ContrastiveKernels kNtXentKernels = {launch_rows<NtXent>, launch_weights<NtXent>, true};

}  // namespace cuda
}  // namespace mcr
