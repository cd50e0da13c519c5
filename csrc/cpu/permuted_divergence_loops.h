#pragma once

#include "cpu/permuted_divergence_kernels.h"
#include "permuted_divergence.h"

namespace mcr {
namespace MCR_ISA {

constexpr PermutedDivergenceKernels kPermutedDivergenceKernels = {
    kWidth<float>,
    kWidth<double>,
    center_rows<float>,
    center_rows<double>,
    permuted_divergence<float>,
    permuted_divergence<double>,
};

}  // namespace MCR_ISA
}  // namespace mcr
