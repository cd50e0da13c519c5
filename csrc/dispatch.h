// The row loops of every op as tables of function pointers, one table for each instruction set.
//
// To plug an op in: `struct mcr::<Op>Kernels` in csrc/<op>/cpu/kernels.h, plain function pointers
// over raw pointers, sizes and scalars, with neither torch nor the C++ library; a field here; its
// loops, in namespace mcr::MCR_ISA, named in kernels.cpp.
// A launcher then calls `mcr::cpu_kernels().<op>.<function>(...)`. It fetches the table once,
// before it goes parallel, so that one call never mixes instruction sets.
#pragma once

#include "contrastive/cpu/kernels.h"
#include "permuted_divergence/cpu/kernels.h"
#include "reconstruction_loss/cpu/kernels.h"
#include "row_divergence/cpu/kernels.h"

namespace mcr {

struct CpuKernels {
  ByType<PermutedDivergenceLoops> permuted_divergence;
  LinearKernels linear;
  ByType<RowDivergenceLoops> row_divergence;
  ContrastiveKernels contrastive;
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
