// What the launcher of nt_xent calls.
#pragma once

#include "cuda/similarity_kernels.h"

namespace mcr {
namespace cuda {

extern const ContrastiveKernels kNtXentKernels;

}  // namespace cuda
}  // namespace mcr
