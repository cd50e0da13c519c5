// Checks of what an op is called with, for the launchers of CPU and CUDA. Python's public edge has
// made them already, in better words; these are for compiled code and for direct calls of the ops,
// which pass the edge by. No value is read here: what only the values tell, the launchers see to.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <initializer_list>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

#include "permuted_divergence/problem.h"

namespace mcr {

enum class Holds { kFloats, kIndices, kMarks };  // a float dtype; int64; bool

constexpr int64_t kAnySize = -1;

// What every argument is held against: the op, for the words, and the device of its first tensor.
class Arguments {
 public:
  using Tensor = torch::stable::Tensor;
  using Shape = std::initializer_list<int64_t>;

  Arguments(const char* op, const Tensor& first) : op_(op), place_(place_of(first)) {}

  void check(const char* name, const Tensor& x, Holds what, Shape shape) const {
    STD_TORCH_CHECK(place_of(x) == place_, op_, ": ", name,
                    " must be on the device of the other tensors");
    STD_TORCH_CHECK(holds(x.scalar_type(), what), op_, ": ", name, " must be ", words(what),
                    ", got ", torch::headeronly::toString(x.scalar_type()));
    STD_TORCH_CHECK(fits(x, shape), op_, ": ", name, " must have shape ", listed(shape), ", got ",
                    listed(x.sizes()));
  }
  void check(const char* name, const std::optional<Tensor>& x, Holds what, Shape shape) const {
    if (x) check(name, *x, what, shape);
  }
  // One number, of any shape.
  void check_number(const char* name, const Tensor& x) const {
    STD_TORCH_CHECK(
        place_of(x) == place_ && holds(x.scalar_type(), Holds::kFloats) && x.numel() == 1, op_,
        ": ", name, " must be one number beside the other tensors");
  }
  // A unit gradient, which only the op's own forward makes: float32, or float64.
  void check_unit(const char* name, const Tensor& x, bool is_double, Shape shape) const {
    check(name, x, Holds::kFloats, shape);
    using torch::headeronly::ScalarType;
    STD_TORCH_CHECK(x.scalar_type() == (is_double ? ScalarType::Double : ScalarType::Float), op_,
                    ": ", name, " must be ", is_double ? "float64" : "float32");
  }

 private:
  static bool holds(torch::headeronly::ScalarType dtype, Holds what) {
    using torch::headeronly::ScalarType;
    if (what == Holds::kIndices) return dtype == ScalarType::Long;
    if (what == Holds::kMarks) return dtype == ScalarType::Bool;
    return dtype == ScalarType::Float || dtype == ScalarType::Double ||
           dtype == ScalarType::BFloat16 || dtype == ScalarType::Half;
  }
  static const char* words(Holds what) {
    return what == Holds::kIndices ? "int64" : what == Holds::kMarks ? "bool" : "a float dtype";
  }
  // Device type and index, as torch's own call gives them.
  static int64_t place_of(const Tensor& x) {
    int32_t type, index;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(x.get(), &type));
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(x.get(), &index));
    return int64_t{type} * 256 + index;
  }
  static bool fits(const Tensor& x, Shape shape) {
    const auto sizes = x.sizes();
    if (sizes.size() != shape.size()) return false;
    const int64_t* given = sizes.data();
    for (const int64_t size : shape) {
      if (size != kAnySize && *given != size) return false;
      ++given;
    }
    return true;
  }
  template <class Sizes>
  static std::string listed(const Sizes& sizes) {
    std::ostringstream text;
    const char* between = "[";
    for (const int64_t size : sizes) {
      text << between << (size == kAnySize ? "any" : std::to_string(size));
      between = ", ";
    }
    text << (*between == '[' ? "[]" : "]");
    return text.str();
  }

  const char* op_;
  const int64_t place_;
};

// Latents of one batch whose widths add up to the reconstruction's.
inline Arguments check_parts(const std::vector<torch::stable::Tensor>& latents,
                             const torch::stable::Tensor& reconstruction) {
  const Arguments arguments("reconstruction_loss", reconstruction);
  int64_t width = 0;
  STD_TORCH_CHECK(reconstruction.dim() == 2,
                  "reconstruction_loss: reconstruction must be a matrix");
  for (const torch::stable::Tensor& z : latents) {
    arguments.check("latents", z, Holds::kFloats, {reconstruction.size(0), kAnySize});
    width += z.size(1);
  }
  arguments.check("reconstruction", reconstruction, Holds::kFloats, {kAnySize, width});
  return arguments;
}

// What the contrastive losses take of embeddings [L, D].
inline void check_rows(const torch::stable::Tensor& embeddings, const torch::stable::Tensor& labels,
                       const std::optional<torch::stable::Tensor>& present, double temperature) {
  const Arguments arguments("the contrastive losses", embeddings);
  arguments.check("embeddings", embeddings, Holds::kFloats, {kAnySize, kAnySize});
  const int64_t L = embeddings.size(0);
  arguments.check("labels", labels, Holds::kIndices, {L});
  arguments.check("present", present, Holds::kMarks, {L});
  STD_TORCH_CHECK(temperature > 0, "temperature must be above 0, got ", temperature);
}

// What row_divergence takes.
inline void check_held_rows(const torch::stable::Tensor& perturbed,
                            const torch::stable::Tensor& clean, const torch::stable::Tensor& rows,
                            const std::optional<torch::stable::Tensor>& row_weight) {
  const Arguments arguments("row_divergence", perturbed);
  arguments.check("clean", clean, Holds::kFloats, {kAnySize, kAnySize});
  arguments.check("perturbed", perturbed, Holds::kFloats, {kAnySize, clean.size(1)});
  const int64_t R = perturbed.size(0);
  arguments.check("rows", rows, Holds::kIndices, {R});
  arguments.check("row_weight", row_weight, Holds::kFloats, {R});
  STD_TORCH_CHECK(R == 0 || clean.size(0) > 0, "rows must be in 0..N-1, but clean has no rows");
}

// What its backward takes.
inline void check_held_gradients(const torch::stable::Tensor& grad,
                                 const torch::stable::Tensor& unit_grad_perturbed,
                                 const torch::stable::Tensor& unit_grad_clean,
                                 const torch::stable::Tensor& perturbed,
                                 const torch::stable::Tensor& clean, bool is_double) {
  const Arguments arguments("row_divergence", perturbed);
  arguments.check_number("grad", grad);
  arguments.check("clean", clean, Holds::kFloats, {kAnySize, kAnySize});
  const int64_t C = clean.size(1);
  arguments.check("perturbed", perturbed, Holds::kFloats, {kAnySize, C});
  arguments.check_unit("unit_grad_perturbed", unit_grad_perturbed, is_double,
                       {perturbed.size(0), C});
  arguments.check_unit("unit_grad_clean", unit_grad_clean, is_double, {clean.size(0), C});
}

// What permuted_divergence takes beside contributions [M, N, C].
inline void check_pairs(const Arguments& arguments, int64_t M, int64_t N, int64_t C,
                        const std::optional<torch::stable::Tensor>& bias,
                        const std::optional<torch::stable::Tensor>& order,
                        const std::optional<torch::stable::Tensor>& donors,
                        const std::optional<torch::stable::Tensor>& labels,
                        const std::optional<torch::stable::Tensor>& present,
                        const std::optional<torch::stable::Tensor>& sample_weight,
                        const std::vector<int64_t>& subsets, const std::string& exclude) {
  STD_TORCH_CHECK(M >= 1 && M <= kMaxModalities, "permuted_divergence: 1 to ", kMaxModalities,
                  " modalities, got ", M);
  arguments.check("bias", bias, Holds::kFloats, {C});
  arguments.check("order", order, Holds::kIndices, {N});
  if (donors && donors->dim() > 0) {
    const int64_t sets = donors->size(0) == 1 ? 1 : M;  // shared, or each modality its own
    if (order) {
      arguments.check("donors", donors, Holds::kIndices, {sets, kAnySize});
    } else {
      arguments.check("donors", donors, Holds::kIndices, {sets, kAnySize, N});
    }
  }
  STD_TORCH_CHECK(!donors || donors->dim() > 0, "permuted_divergence: donors must be a table");
  STD_TORCH_CHECK(labels || exclude != "same_label",
                  "permuted_divergence: labels must be given for exclude='same_label'");
  arguments.check("labels", labels, Holds::kIndices, {N});
  arguments.check("present", present, Holds::kMarks, {N, M});
  arguments.check("sample_weight", sample_weight, Holds::kFloats, {N});
  for (const int64_t subset : subsets) {
    STD_TORCH_CHECK(subset >= 1 && subset < int64_t{1} << M, "permuted_divergence: a subset of ", M,
                    " modalities must be in 1..", (int64_t{1} << M) - 1, ", got ", subset);
  }
}

// What its backward takes before what the forward took.
inline void check_pair_gradients(const torch::stable::Tensor& grad,
                                 const torch::stable::Tensor& unit_grad,
                                 const torch::stable::Tensor& unit_grad_bias,
                                 const torch::stable::Tensor& contributions,
                                 const std::optional<torch::stable::Tensor>& bias,
                                 const std::vector<int64_t>& subsets, bool is_double) {
  const Arguments arguments("permuted_divergence", contributions);
  arguments.check("contributions", contributions, Holds::kFloats, {kAnySize, kAnySize, kAnySize});
  const int64_t M = contributions.size(0), N = contributions.size(1), C = contributions.size(2);
  arguments.check("bias", bias, Holds::kFloats, {C});
  arguments.check("grad", grad, Holds::kFloats, {int64_t(subsets.size())});
  arguments.check_unit("unit_grad", unit_grad, is_double, {M, N, C});
  arguments.check_unit("unit_grad_bias", unit_grad_bias, is_double, {C});
}

}  // namespace mcr
