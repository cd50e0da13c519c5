#pragma once

#include "cpu/reconstruction_loss_kernels.h"
#include "reconstruction_loss.h"
#include "vector_team.h"

namespace mcr {
namespace MCR_ISA {

template <class T, class In>
double squared_error_of_rows(const ReconstructionPart<In, In>& part, int64_t begin, int64_t end) {
  return squared_error(VectorTeam<T>(), part, begin, end, 1);
}

template <class T, class In>
void squared_error_grad_of_rows(const ReconstructionPart<In, In>& part, int64_t begin, int64_t end,
                                T factor) {
  squared_error_grad(VectorTeam<T>(), part, begin, end, 1, factor);
}

template <class T, class In>
constexpr ReconstructionLossLoops<T, In> kReconstructionLossLoops = {
    squared_error_of_rows<T, In>, squared_error_grad_of_rows<T, In>};

constexpr ReconstructionLossKernels kReconstructionLossKernels = {
    kReconstructionLossLoops<float, float>, kReconstructionLossLoops<double, double>,
    kReconstructionLossLoops<float, uint16_t>};

}  // namespace MCR_ISA
}  // namespace mcr
