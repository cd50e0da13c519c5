#pragma once

#include "cpu/similarity_kernels.h"

namespace mcr {

template <class T>
struct SupConLoops {
  SimilarityKernels<T> similarity;
  double (*positives)(const SimilarityStripe<T>&, int64_t begin, int64_t end);
  WeightsKernels<T> weights;
};

struct SupConKernels {
  SupConLoops<float> f32;
  SupConLoops<double> f64;
};

}  // namespace mcr
