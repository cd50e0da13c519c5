#pragma once

#include "cpu/similarity_kernels.h"

namespace mcr {

template <class T>
struct NtXentLoops {
  SimilarityKernels<T> similarity;
  double (*pairs)(const SimilarityStripe<T>&, int64_t begin, int64_t end, const RowWeights<T>&,
                  T* row_c, double* c);
  WeightsKernels<T> weights;
};

struct NtXentKernels {
  NtXentLoops<float> f32;
  NtXentLoops<double> f64;
};

}  // namespace mcr
