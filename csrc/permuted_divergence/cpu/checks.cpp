// Checks of arguments that plain torch would make in ten times the time of a small batch.
#include "core/arguments.h"
#include "cpu/tensors.h"
#include "permuted_divergence/cpu/permutations.h"

namespace mcr {
namespace {

// The first row of [R, N] that does not hold each of 0..N-1 once, or -1; as a tensor, for what it
// is depends on values, which a compiler does not have.
Tensor first_non_permutation_cpu(const Tensor& rows) {  // [R, N] int64 -> [] int64
  Arguments("first_non_permutation", rows)
      .check("rows", rows, Holds::kIndices, {kAnySize, kAnySize});
  const Tensor table = contiguous_as(rows, ScalarType::Long);
  const Tensor first = empty_cpu({}, ScalarType::Long);
  *data<int64_t>(first) =
      first_non_permutation(data<const int64_t>(table), table.size(0), table.size(1));
  return first;
}

}  // namespace
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CPU, m) {
  m.impl("first_non_permutation", TORCH_BOX(&mcr::first_non_permutation_cpu));
}
