// The reconstruction loss' row algorithms: the mean over all elements of (h - [Z_1 .. Z_M])^2. Each
// modality meets its own columns of h where they lie, so no concatenation exists.
//
// A team takes a row in steps: vector_team.h for a CPU thread, piece_team.h for threads of a GPU.
// Its members never have to agree on anything: each adds up what it read itself.
#pragma once

#include "core/macros.h"
#include "reconstruction_loss/problem.h"

namespace mcr {
namespace MCR_ISA {

// This member's share of the sum of (h - z)^2 over rows begin, begin + step, .. below end.
template <class Z, class H, class Team>
MCR_FN double squared_error(const Team& team, const ReconstructionPart& part, int64_t begin,
                            int64_t end, int64_t step) {
  using V = typename Team::V;
  const int64_t width = part.width, whole = team.whole_steps(width);
  double total = 0;
  for (int64_t row = begin; row < end; row += step) {
    const Z* z = static_cast<const Z*>(part.latents) + row * part.latents_stride;
    const H* h = static_cast<const H*>(part.reconstruction) + row * part.reconstruction_stride;
    V squares = {};
    int64_t n = 0;
    while (n < whole) {
      const int64_t stop = n + Team::kStepsPerSum < whole ? n + Team::kStepsPerSum : whole;
      MCR_UNROLL
      for (; n < stop; ++n) {
        const V difference = team.load(h, n) - team.load(z, n);
        squares += difference * difference;
      }
      if (n == whole) break;
      total += team.total(squares);  // float64 takes over before float32 has added up too many
      squares = V{};
    }
    if (team.has_rest(width)) {
      const V difference = team.load_rest(h, n, width) - team.load_rest(z, n, width);
      squares += difference * difference;
    }
    total += team.total(squares);
  }
  return total;
}

// Its gradient: factor * (h - z) to h and minus that to z.
template <class Z, class H, class Team, class T>
MCR_FN void squared_error_grad(const Team& team, const ReconstructionPart& part, int64_t begin,
                               int64_t end, int64_t step, T factor) {
  using V = typename Team::V;
  const int64_t width = part.width, whole = team.whole_steps(width);
  for (int64_t row = begin; row < end; row += step) {
    const Z* z = static_cast<const Z*>(part.latents) + row * part.latents_stride;
    const H* h = static_cast<const H*>(part.reconstruction) + row * part.reconstruction_stride;
    Z* grad_z = static_cast<Z*>(part.grad_latents) + row * width;
    H* grad_h = static_cast<H*>(part.grad_reconstruction) + row * part.grad_stride;
    // not unrolled: reads could not move before the writes of the step before
    MCR_NO_UNROLL
    for (int64_t n = 0; n < whole; ++n) {
      const V g = factor * (team.load(h, n) - team.load(z, n));
      team.store(grad_h, n, g);
      team.store(grad_z, n, -g);
    }
    if (team.has_rest(width)) {
      const V g = factor * (team.load_rest(h, whole, width) - team.load_rest(z, whole, width));
      team.store_rest(grad_h, whole, width, g);
      team.store_rest(grad_z, whole, width, -g);
    }
  }
}

}  // namespace MCR_ISA
}  // namespace mcr
