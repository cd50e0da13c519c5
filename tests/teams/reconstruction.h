// What module.cpp calls of reconstruction.cpp.
#pragma once

#include "reconstruction_loss/problem.h"

namespace mcr {

// One modality; the gradients where it has somewhere to write them. Numbers of 2 bytes are
// bfloat16.
struct ReconstructionRun {
  ReconstructionPart<void, void> part;
  int64_t rows, blocks;
  int latents_bytes, reconstruction_bytes;
  bool in_pieces;
  float factor;
};

namespace threads {
double reconstruct(const ReconstructionRun& given);
}  // namespace threads
}  // namespace mcr
