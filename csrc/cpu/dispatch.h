// The row loops of every op as tables of function pointers, one table for each instruction set.
//
// To plug an op in:
//   csrc/cpu/<op>_kernels.h   struct mcr::<Op>Kernels: plain function pointers. Raw pointers, sizes
//                             and scalars only; neither torch nor the C++ library.
//   csrc/cpu/<op>_loops.h     the loops, in namespace mcr::MCR_ISA, and at the end
//                             `constexpr <Op>Kernels k<Op>Kernels = {...}`. Only kernels.cpp
//                             includes it, once for each instruction set.
//   one include and one field here, one include and one initialiser in kernels.cpp.
// A launcher then calls `mcr::cpu_kernels().<op>.<function>(...)`. It fetches the table once,
// before it goes parallel, so that one call never mixes instruction sets.
#pragma once

#include "cpu/linear_kernels.h"
#include "cpu/nt_xent_kernels.h"
#include "cpu/permuted_divergence_kernels.h"
#include "cpu/reconstruction_loss_kernels.h"
#include "cpu/row_divergence_kernels.h"
#include "cpu/sup_con_kernels.h"

namespace mcr {

struct CpuKernels {
  PermutedDivergenceKernels permuted_divergence;
  LinearKernels linear;
  RowDivergenceKernels row_divergence;
  NtXentKernels nt_xent;
  SupConKernels sup_con;
  ReconstructionLossKernels reconstruction_loss;
  const char* capability;  // "portable", "avx2" or "avx512"
};

namespace portable {
const CpuKernels& table();
}
namespace avx2 {
const CpuKernels& table();
}
namespace avx512 {
const CpuKernels& table();
}

// The active table: the best one this CPU runs, or the one last asked for.
const CpuKernels& cpu_kernels();

// Makes the table of that name active; false if it is not compiled in or the CPU cannot run it.
bool set_cpu_capability(const char* capability);

// Names of the tables compiled in (`runnable_only`: and that this CPU can run), from the lowest to
// the highest, separated by ", ".
const char* cpu_capabilities(bool runnable_only);

}  // namespace mcr
