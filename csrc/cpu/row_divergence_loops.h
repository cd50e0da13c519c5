#pragma once

#include "cpu/row_divergence_kernels.h"
#include "row_divergence.h"

namespace mcr {
namespace MCR_ISA {

constexpr RowDivergenceKernels kRowDivergenceKernels = {
    kWidth<float>, kWidth<double>, row_divergence<float>, row_divergence<double>};

}  // namespace MCR_ISA
}  // namespace mcr
