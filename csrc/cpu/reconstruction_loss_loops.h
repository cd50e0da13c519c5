#pragma once

#include "cpu/reconstruction_loss_kernels.h"
#include "reconstruction_loss.h"

namespace mcr {
namespace MCR_ISA {

template <class T, class In>
constexpr ReconstructionLossLoops<T, In> kReconstructionLossLoops = {squared_error<T, In>,
                                                                     squared_error_grad<T, In>};

constexpr ReconstructionLossKernels kReconstructionLossKernels = {
    kReconstructionLossLoops<float, float>, kReconstructionLossLoops<double, double>,
    kReconstructionLossLoops<float, uint16_t>};

}  // namespace MCR_ISA
}  // namespace mcr
