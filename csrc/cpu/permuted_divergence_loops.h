#pragma once

#include "cpu/permuted_divergence_kernels.h"
#include "permuted_divergence.h"

namespace mcr {
namespace MCR_ISA {

constexpr PermutedDivergenceKernels kPermutedDivergenceKernels = {
    kWidth<float>,
    kWidth<double>,
    stored_powers<float>,
    stored_powers<double>,
    permuted_divergence<float>,
    permuted_divergence<double>,
};

}  // namespace MCR_ISA
}  // namespace mcr
