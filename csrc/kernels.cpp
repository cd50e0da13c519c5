// Every row loop of the CPU backend. CMake compiles this file once for each instruction set, with
// -DMCR_ISA=<namespace>; dispatch.cpp picks a table at run time. No torch and no C++ library header
// may be reached from here: the linker keeps one copy of an inline function, and the copy compiled
// for AVX-512 would then run on machines without it. What is inline lives in namespace MCR_ISA.
#include "contrastive/cpu/block_loops.h"
#include "contrastive/cpu/loops.h"
#include "dispatch.h"
#include "permuted_divergence/cpu/linear_loops.h"
#include "permuted_divergence/push.h"
#include "reconstruction_loss/cpu/loops.h"
#include "row_divergence/grouped.h"

#define MCR_STRING_(x) #x
#define MCR_STRING(x) MCR_STRING_(x)

namespace mcr {
namespace MCR_ISA {

const CpuKernels& table() {
  static constexpr CpuKernels kTable = {
      {{kWidth<float>, center_rows<float>, permuted_divergence<float>},
       {kWidth<double>, center_rows<double>, permuted_divergence<double>}},
      {linear_forward, linear_grad_z, linear_grad_w},
      {{kWidth<float>, row_divergence<float>}, {kWidth<double>, row_divergence<double>}},
      {{contrastive_loops<NtXent, float>(nt_xent_pairs<float>),
        contrastive_loops<NtXent, double>(nt_xent_pairs<double>)},
       {contrastive_loops<SupCon, float>(sup_con_positives<float>),
        contrastive_loops<SupCon, double>(sup_con_positives<double>)},
       {block_loops<NtXent, float>(block_nt_xent_pairs<float>),
        block_loops<NtXent, double>(block_nt_xent_pairs<double>)},
       {block_loops<SupCon, float>(block_sup_con_pairs<float>),
        block_loops<SupCon, double>(block_sup_con_pairs<double>)}},
      {kReconstructionLossLoops<float, float>, kReconstructionLossLoops<double, double>,
       kReconstructionLossLoops<float, uint16_t>},
      MCR_STRING(MCR_ISA),
  };
  return kTable;
}

}  // namespace MCR_ISA
}  // namespace mcr
