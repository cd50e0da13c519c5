// What the launchers of every op call: sums over the rows, scaled gradients.
#pragma once

#include <cuda_runtime_api.h>
#include <stdint.h>

namespace mcr {
namespace cuda {

// A row of more classes would not fit the threads of a block (teams.h).
constexpr int64_t kMaxClasses = 65536;

enum class Storage { kFloat, kBfloat16, kHalf };

// values [S] = the sums over the rows.
void sum_values(const double* row_values, int64_t subsets, int64_t rows, float* values,
                cudaStream_t stream);
// to = upstream[0] * unit, or `again` where that is given and *skip is 0.
void scale_grad(const float* unit, const float* upstream, const float* again, const int32_t* skip,
                int64_t count, Storage storage, void* to, cudaStream_t stream);

}  // namespace cuda
}  // namespace mcr
