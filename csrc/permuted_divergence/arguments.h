// What the launchers of permuted_divergence are called with.
#pragma once

#include "core/arguments.h"
#include "divergence/options.h"
#include "permuted_divergence/problem.h"

namespace mcr {

struct PermutedDivergenceArguments {
  const Tensor& contributions;          // [M, N, C]
  const OptionalTensor& bias;           // [C]
  const OptionalTensor& order;          // [N]
  const OptionalTensor& donors;         // [1 or M, K] shifts or [1 or M, K, N] table
  const OptionalTensor& labels;         // [N]
  const OptionalTensor& present;        // [N, M]
  const OptionalTensor& sample_weight;  // [N]
  const std::vector<int64_t>& subsets;
  const std::string &strategy, &clean_path, &divergence, &exclude;

  void check() const {
    const Arguments on("permuted_divergence", contributions);
    on.check("contributions", contributions, Holds::kFloats, {kAnySize, kAnySize, kAnySize});
    const int64_t M = contributions.size(0), N = contributions.size(1), C = contributions.size(2);
    STD_TORCH_CHECK(M >= 1 && M <= kMaxModalities, "permuted_divergence: 1 to ", kMaxModalities,
                    " modalities, got ", M);
    STD_TORCH_CHECK(C >= 1, "permuted_divergence: contributions must have at least 1 class");
    on.check("bias", bias, Holds::kFloats, {C});
    on.check("order", order, Holds::kIndices, {N});
    if (donors && donors->dim() > 0) {
      const int64_t sets = donors->size(0) == 1 ? 1 : M;  // shared, or each modality its own
      if (order) {
        on.check("donors", donors, Holds::kIndices, {sets, kAnySize});
      } else {
        on.check("donors", donors, Holds::kIndices, {sets, kAnySize, N});
      }
    }
    STD_TORCH_CHECK(!donors || donors->dim() > 0, "permuted_divergence: donors must be a table");
    STD_TORCH_CHECK(labels || exclude != "same_label",
                    "permuted_divergence: labels must be given for exclude='same_label'");
    on.check("labels", labels, Holds::kIndices, {N});
    on.check("present", present, Holds::kMarks, {N, M});
    on.check("sample_weight", sample_weight, Holds::kFloats, {N});
    for (const int64_t subset : subsets) {
      STD_TORCH_CHECK(subset >= 1 && subset < int64_t{1} << M, "permuted_divergence: a subset of ",
                      M, " modalities must be in 1..", (int64_t{1} << M) - 1, ", got ", subset);
    }
  }

  // What the backward takes beside them.
  void check_gradients(const Tensor& grad, const Tensor& unit_grad, const Tensor& unit_grad_bias,
                       bool is_double) const {
    const Arguments on("permuted_divergence", contributions);
    on.check("contributions", contributions, Holds::kFloats, {kAnySize, kAnySize, kAnySize});
    const int64_t M = contributions.size(0), N = contributions.size(1), C = contributions.size(2);
    on.check("bias", bias, Holds::kFloats, {C});
    on.check("grad", grad, Holds::kFloats, {int64_t(subsets.size())});
    on.check_unit("unit_grad", unit_grad, is_double, {M, N, C});
    on.check_unit("unit_grad_bias", unit_grad_bias, is_double, {C});
  }
};

// The options, as the row algorithms have them.
template <class T>
void read_options(const PermutedDivergenceArguments& from, PermutedDivergenceProblem<T>& to) {
  to.divergence = divergence_kind(from.divergence);
  to.clean_path =
      CleanPath(place_of("clean_path", from.clean_path, {"shared", "routed", "detached"}));
  to.outsider = place_of("strategy", from.strategy, {"greedy", "independent", "collaborative"}) - 1;
  to.exclude = Exclude(place_of("exclude", from.exclude, {"none", "self", "same_label"}));
  to.may_drop = from.present || to.exclude != Exclude::kNone;
  to.num_subsets = int(from.subsets.size());
  to.modalities = int(from.contributions.size(0));
  to.rows = from.contributions.size(1);
}

// The ops as they are called, for a device's forward and backward.
template <auto kForward>
std::tuple<Tensor, Tensor, Tensor> permuted_divergence_fwd(
    const Tensor& contributions, const OptionalTensor& bias, const OptionalTensor& order,
    const OptionalTensor& donors, const OptionalTensor& labels, const OptionalTensor& present,
    const OptionalTensor& sample_weight, const std::vector<int64_t>& subsets,
    const std::string& strategy, const std::string& clean_path, const std::string& divergence,
    const std::string& exclude, bool want_grad) {
  return kForward({contributions, bias, order, donors, labels, present, sample_weight, subsets,
                   strategy, clean_path, divergence, exclude},
                  want_grad);
}
template <auto kBackward>
std::tuple<Tensor, Tensor> permuted_divergence_bwd(
    const Tensor& grad, const Tensor& unit_grad, const Tensor& unit_grad_bias,
    const Tensor& contributions, const OptionalTensor& bias, const OptionalTensor& order,
    const OptionalTensor& donors, const OptionalTensor& labels, const OptionalTensor& present,
    const OptionalTensor& sample_weight, const std::vector<int64_t>& subsets,
    const std::string& strategy, const std::string& clean_path, const std::string& divergence,
    const std::string& exclude) {
  return kBackward(grad, unit_grad, unit_grad_bias,
                   {contributions, bias, order, donors, labels, present, sample_weight, subsets,
                    strategy, clean_path, divergence, exclude});
}

}  // namespace mcr
