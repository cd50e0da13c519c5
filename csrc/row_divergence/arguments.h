// What the launchers of row_divergence are called with.
#pragma once

#include "core/arguments.h"

namespace mcr {

// What row_divergence takes.
inline void check_held_rows(const Tensor& perturbed, const Tensor& clean, const Tensor& rows,
                            const OptionalTensor& row_weight) {
  const Arguments arguments("row_divergence", perturbed);
  arguments.check("clean", clean, Holds::kFloats, {kAnySize, kAnySize});
  arguments.check("perturbed", perturbed, Holds::kFloats, {kAnySize, clean.size(1)});
  const int64_t R = perturbed.size(0);
  arguments.check("rows", rows, Holds::kIndices, {R});
  arguments.check("row_weight", row_weight, Holds::kFloats, {R});
  STD_TORCH_CHECK(R == 0 || clean.size(0) > 0, "rows must be in 0..N-1, but clean has no rows");
}

// What only a GPU's launcher leaves for a backward, and takes.
inline void check_no_notes(bool notes) {
  STD_TORCH_CHECK(!notes, "row_divergence: the CPU keeps gradients and no notes");
}

// What its backward takes.
inline void check_held_gradients(const Tensor& grad, const OptionalTensor& weight,
                                 const Tensor& unit_grad_perturbed, const Tensor& unit_grad_clean,
                                 const Tensor& perturbed, const Tensor& clean, bool is_double) {
  const Arguments arguments("row_divergence", perturbed);
  arguments.check_number("grad", grad);
  if (weight) arguments.check_number("weight", *weight);
  arguments.check("clean", clean, Holds::kFloats, {kAnySize, kAnySize});
  const int64_t C = clean.size(1);
  arguments.check("perturbed", perturbed, Holds::kFloats, {kAnySize, C});
  arguments.check_unit("of_perturbed", unit_grad_perturbed, is_double, {perturbed.size(0), C});
  arguments.check_unit("unit_grad_clean", unit_grad_clean, is_double, {clean.size(0), C});
}

}  // namespace mcr
