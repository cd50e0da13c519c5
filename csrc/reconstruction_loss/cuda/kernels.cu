// The kernels of reconstruction_loss: they read what there is once, and write gradients once.
#include "cuda/blocks.h"
#include "reconstruction_loss/cuda/kernels.h"
#include "reconstruction_loss/piece_team.h"
#include "reconstruction_loss/rows.h"

namespace mcr {
namespace cuda {
namespace {

constexpr int64_t kMaxBlocks = 2048;  // of a part; more rows come in the same threads' next round
// On a multiprocessor. A thread of the forward has up to eight reads under way, one of the backward
// two: 1024 threads of 64 registers, and 1536 of 40 where a multiprocessor takes so many.
constexpr int kForwardBlocks = 4;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 800
constexpr int kBackwardBlocks = 4;
#else
constexpr int kBackwardBlocks = 6;
#endif

template <class Z, class H, int kPiece>
__global__ void __launch_bounds__(kBlockThreads, kForwardBlocks)
    squared_error_kernel(const __grid_constant__ ReconstructionParts parts, double scale,
                         double* partial) {
  const int log_lanes = parts.log_lanes[blockIdx.y];
  const ReconstructionPart part = parts.parts[blockIdx.y];
  const PieceTeam<kPiece> team(threadIdx.x, log_lanes);
  const double sum = block_sum(squared_error<Z, H>(team, part, first_index() >> log_lanes,
                                                   parts.rows, index_step() >> log_lanes));
  if (threadIdx.x == 0) partial[int64_t(blockIdx.y) * gridDim.x + blockIdx.x] = scale * sum;
}

template <class Z, class H, int kPiece>
__global__ void __launch_bounds__(kBlockThreads, kBackwardBlocks)
    squared_error_grad_kernel(const __grid_constant__ ReconstructionParts parts, double factor,
                              const float* upstream) {
  const int log_lanes = parts.log_lanes[blockIdx.y];
  const ReconstructionPart part = parts.parts[blockIdx.y];
  const PieceTeam<kPiece> team(threadIdx.x, log_lanes);
  squared_error_grad<Z, H>(team, part, first_index() >> log_lanes, parts.rows,
                           index_step() >> log_lanes, float(factor * upstream[0]));
}

template <int kCountOfPiece>
struct PieceTag {
  static constexpr int kCount = kCountOfPiece;
};

// Calls f(Z, H, the piece as a type) for the storage of the parts.
template <class F>
void with_kernel(const ReconstructionParts& parts, const F& f) {
  with_storage(parts.latents, [&](auto z) {
    with_storage(parts.reconstruction, [&](auto h) {
      if (parts.in_pieces) {
        f(z, h, PieceTag<piece_of(sizeof(z), sizeof(h))>());
      } else {
        f(z, h, PieceTag<1>());
      }
    });
  });
}

}  // namespace

int64_t blocks_of(const ReconstructionParts& parts) {
  int64_t most = 1;
  for (int m = 0; m < parts.count; ++m) {
    const int64_t teams = kBlockThreads >> parts.log_lanes[m];
    const int64_t blocks = (parts.rows + teams - 1) / teams;
    most = blocks > most ? blocks : most;
  }
  return most < kMaxBlocks ? most : kMaxBlocks;
}

void sum_squared_errors(const ReconstructionParts& parts, double scale, double* partial,
                        cudaStream_t stream) {
  const dim3 grid(unsigned(blocks_of(parts)), unsigned(parts.count));
  with_kernel(parts, [&](auto z, auto h, auto piece) {
    squared_error_kernel<decltype(z), decltype(h), decltype(piece)::kCount>
        <<<grid, kBlockThreads, 0, stream>>>(parts, scale, partial);
  });
}

void grad_squared_errors(const ReconstructionParts& parts, double factor, const float* upstream,
                         cudaStream_t stream) {
  const dim3 grid(unsigned(blocks_of(parts)), unsigned(parts.count));
  with_kernel(parts, [&](auto z, auto h, auto piece) {
    squared_error_grad_kernel<decltype(z), decltype(h), decltype(piece)::kCount>
        <<<grid, kBlockThreads, 0, stream>>>(parts, factor, upstream);
  });
}

}  // namespace cuda
}  // namespace mcr
