// Checks of arguments that plain torch would make in ten times the time of a small batch.
#include <vector>

#include "cpu/tensors.h"

namespace mcr {
namespace {

// The first row of [R, N] that does not hold each of 0..N-1 once, or -1.
int64_t first_non_permutation_cpu(const Tensor& rows) {  // [R, N] int64
  const Tensor table = contiguous_as(rows, ScalarType::Long);
  const int64_t R = table.size(0), N = table.size(1);
  const int64_t* row = table.const_data_ptr<int64_t>();
  std::vector<int64_t> seen_in(N, -1);
  for (int64_t r = 0; r < R; ++r, row += N) {
    for (int64_t i = 0; i < N; ++i) {
      const int64_t j = row[i];
      if (j < 0 || j >= N || seen_in[j] == r) return r;
      seen_in[j] = r;
    }
  }
  return -1;
}

}  // namespace
}  // namespace mcr

STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CPU, m) {
  m.impl("first_non_permutation", TORCH_BOX(&mcr::first_non_permutation_cpu));
}
