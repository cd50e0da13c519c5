// Every row loop of the CPU backend. CMake compiles this file once for each instruction set, with
// -DMCR_ISA=<namespace>; dispatch.cpp picks a table at run time. No torch and no C++ library header
// may be reached from here: the linker keeps one copy of an inline function, and the copy compiled
// for AVX-512 would then run on machines without it. What is inline lives in namespace MCR_ISA.
#include "cpu/dispatch.h"
#include "cpu/linear_loops.h"
#include "cpu/nt_xent_loops.h"
#include "cpu/permuted_divergence_loops.h"
#include "cpu/reconstruction_loss_loops.h"
#include "cpu/row_divergence_loops.h"
#include "cpu/sup_con_loops.h"
#include "vec.h"

#define MCR_STRING_(x) #x
#define MCR_STRING(x) MCR_STRING_(x)

namespace mcr {
namespace MCR_ISA {

const CpuKernels& table() {
  static constexpr CpuKernels kTable = {
      kPermutedDivergenceKernels,
      kLinearKernels,
      kRowDivergenceKernels,
      kNtXentKernels,
      kSupConKernels,
      kReconstructionLossKernels,
      MCR_STRING(MCR_ISA),
  };
  return kTable;
}

}  // namespace MCR_ISA
}  // namespace mcr
