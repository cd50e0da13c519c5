#pragma once

#include "cpu/nt_xent_kernels.h"
#include "cpu/similarity_loops.h"
#include "nt_xent.h"

namespace mcr {
namespace MCR_ISA {

constexpr NtXentKernels kNtXentKernels = {
    {kSimilarityKernels<float>,
     nt_xent_pairs<float>,
     {nt_xent_weights<false, float, float>, nt_xent_weights<true, float, float>,
      nt_xent_weights<false, float, uint16_t>, nt_xent_weights<true, float, uint16_t>}},
    {kSimilarityKernels<double>,
     nt_xent_pairs<double>,
     {nt_xent_weights<false, double, double>, nt_xent_weights<true, double, double>, nullptr,
      nullptr}}};

}  // namespace MCR_ISA
}  // namespace mcr
