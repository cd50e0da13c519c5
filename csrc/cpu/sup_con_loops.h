#pragma once

#include "cpu/similarity_loops.h"
#include "cpu/sup_con_kernels.h"
#include "sup_con.h"

namespace mcr {
namespace MCR_ISA {

constexpr SupConKernels kSupConKernels = {
    {kSimilarityKernels<float>,
     sup_con_positives<float>,
     {sup_con_weights<false, float, float>, sup_con_weights<true, float, float>,
      sup_con_weights<false, float, uint16_t>, sup_con_weights<true, float, uint16_t>}},
    {kSimilarityKernels<double>,
     sup_con_positives<double>,
     {sup_con_weights<false, double, double>, sup_con_weights<true, double, double>, nullptr,
      nullptr}}};

}  // namespace MCR_ISA
}  // namespace mcr
