// The kernels of the contrastive losses.
#include "contrastive/cuda/rows.h"
#include "contrastive/nt_xent.h"
#include "contrastive/sup_con.h"

namespace mcr {
namespace cuda {

const ContrastiveKernels kNtXentKernels = {launch_rows<MCR_ISA::NtXent>,
                                           launch_weights<MCR_ISA::NtXent>, true};
const ContrastiveKernels kSupConKernels = {launch_rows<MCR_ISA::SupCon>,
                                           launch_weights<MCR_ISA::SupCon>, false};

}  // namespace cuda
}  // namespace mcr
