// What the launchers of every op call: sums over the rows, scaled gradients.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

namespace mcr {
namespace cuda {

enum class Storage { kFloat, kBfloat16, kHalf };

// first[0], others[0], others[1] .. = the sums over the rows of row_values [S, rows], which are
// lost, and NaN where factors [S] is, if it is given; nothing where *skip is 1.
void sum_values(double* row_values, int64_t subsets, int64_t rows, float* first, float* others,
                cudaStream_t stream, const int32_t* skip = nullptr, const float* factors = nullptr);

// What a forward left for an upstream gradient of 1, and what is to come of it.
struct UnitGrad {
  const float *unit, *again;  // `again`: computed for the upstream gradients there are
  int64_t count;
  void* to;
  Storage storage;  // of `to`
};
// to = upstream[0] * unit, of both; or `again` where skip is given and *skip is 0.
void scale_grads(const UnitGrad& first, const UnitGrad& second, const float* upstream,
                 const int32_t* skip, cudaStream_t stream);

}  // namespace cuda
}  // namespace mcr
