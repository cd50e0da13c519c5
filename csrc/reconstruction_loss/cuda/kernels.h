// What the launcher of reconstruction_loss calls.
#pragma once

#include "cuda/sums.h"
#include "reconstruction_loss/problem.h"

namespace mcr {
namespace cuda {

constexpr int kMaxParts = 8;

// Modalities of one storage that run together.
struct ReconstructionParts {
  ReconstructionPart parts[kMaxParts];
  int log_lanes[kMaxParts];  // threads of a row, by log_lanes_of
  int count;
  int64_t rows;
  bool in_pieces;  // 16 bytes at once: every row begins at a multiple of them
  Storage latents, reconstruction;
};

// Blocks a part, and so how many partial sums it leaves.
int64_t blocks_of(const ReconstructionParts& parts);

// partial [count, blocks] = scale * the sums of squares.
void sum_squared_errors(const ReconstructionParts& parts, double scale, double* partial,
                        cudaStream_t stream);
// Both gradients, for upstream[0] times `factor`.
void grad_squared_errors(const ReconstructionParts& parts, double factor, const float* upstream,
                         cudaStream_t stream);

}  // namespace cuda
}  // namespace mcr
