// The threads of the kernels of reconstruction_loss, one after the other on the host.
#include "reconstruction.h"

#include <vector>

namespace mcr {
namespace MCR_ISA {
namespace {

float to_float(float x) { return x; }
float to_float(uint16_t bfloat16) {
  const uint32_t bits = uint32_t(bfloat16) << 16;
  float x;
  __builtin_memcpy(&x, &bits, sizeof(x));
  return x;
}
void assign(float* to, float x) { *to = x; }
// To nearest even, of finite numbers.
void assign(uint16_t* to, float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof(bits));
  *to = uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

}  // namespace
}  // namespace MCR_ISA
}  // namespace mcr

#include "reconstruction_loss/piece_team.h"
#include "reconstruction_loss/rows.h"

namespace mcr {
namespace MCR_ISA {
namespace {

constexpr int kBlockThreads = 256;

template <class Z, class H>
ReconstructionPart<Z, H> typed(const ReconstructionPart<void, void>& part) {
  return {static_cast<const Z*>(part.latents),
          static_cast<const H*>(part.reconstruction),
          part.latents_stride,
          part.reconstruction_stride,
          part.width,
          static_cast<Z*>(part.grad_latents),
          static_cast<H*>(part.grad_reconstruction),
          part.grad_stride};
}

// The sum over a grid of `blocks`, or the gradients.
template <class Z, class H, int kPiece>
double run(const ReconstructionRun& given) {
  const auto part = typed<Z, H>(given.part);
  const int log_lanes = log_lanes_of(part.width, kPiece);
  double total = 0;
  for (int64_t index = 0; index < given.blocks * kBlockThreads; ++index) {
    const PieceTeam<kPiece> team(unsigned(index % kBlockThreads), log_lanes);
    const int64_t first = index >> log_lanes, step = given.blocks * kBlockThreads >> log_lanes;
    if (given.part.grad_latents) {
      squared_error_grad(team, part, first, given.rows, step, given.factor);
    } else {
      total += squared_error(team, part, first, given.rows, step);
    }
  }
  return total;
}

template <class Z, class H>
double run_pieces(const ReconstructionRun& given) {
  return given.in_pieces ? run<Z, H, piece_of(sizeof(Z), sizeof(H))>(given) : run<Z, H, 1>(given);
}

}  // namespace

double reconstruct(const ReconstructionRun& given) {
  if (given.latents_bytes == 4) {
    return given.reconstruction_bytes == 4 ? run_pieces<float, float>(given)
                                           : run_pieces<float, uint16_t>(given);
  }
  return given.reconstruction_bytes == 4 ? run_pieces<uint16_t, float>(given)
                                         : run_pieces<uint16_t, uint16_t>(given);
}

}  // namespace MCR_ISA
}  // namespace mcr
