#pragma once

#include "cpu/similarity_kernels.h"
#include "similarity.h"

namespace mcr {
namespace MCR_ISA {

template <class T>
constexpr SimilarityKernels<T> kSimilarityKernels = {normalize_rows<T>, exp_sums<false, T>,
                                                     exp_sums<true, T>, project_rows<T>,
                                                     to_bfloat16,       add_bfloat16};

}  // namespace MCR_ISA
}  // namespace mcr
