// What the launcher of sup_con calls.
#pragma once

#include "cuda/similarity_kernels.h"

namespace mcr {
namespace cuda {

extern const ContrastiveKernels kSupConKernels;

}  // namespace cuda
}  // namespace mcr
