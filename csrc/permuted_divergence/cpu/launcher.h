// The launcher of permuted_divergence, for the other launchers that start from something else than
// contributions.
#pragma once

#include <string>
#include <tuple>
#include <vector>

#include "permuted_divergence/cpu/inputs.h"

namespace mcr {

// -> divergences [S], unit_grad [M, N, C] and unit_grad_bias [C] for an upstream gradient of ones
std::tuple<Tensor, Tensor, Tensor> permuted_divergence_fwd_cpu(
    const Tensor& contributions,          // [M, N, C]
    const OptionalTensor& bias,           // [C]
    const OptionalTensor& order,          // [N]
    const OptionalTensor& donors,         // [1 or M, K] shifts or [1 or M, K, N] table
    const OptionalTensor& labels,         // [N]
    const OptionalTensor& present,        // [N, M]
    const OptionalTensor& sample_weight,  // [N]
    const std::vector<int64_t>& subsets, const std::string& strategy, const std::string& clean_path,
    const std::string& divergence, const std::string& exclude, bool want_grad);

// -> grad_contributions [M, N, C], grad_bias [C]
std::tuple<Tensor, Tensor> permuted_divergence_bwd_cpu(
    const Tensor& grad,  // [S]
    const Tensor& unit_grad, const Tensor& unit_grad_bias,
    const Tensor& contributions,  // and on: as the forward took them
    const OptionalTensor& bias, const OptionalTensor& order, const OptionalTensor& donors,
    const OptionalTensor& labels, const OptionalTensor& present,
    const OptionalTensor& sample_weight, const std::vector<int64_t>& subsets,
    const std::string& strategy, const std::string& clean_path, const std::string& divergence,
    const std::string& exclude);

}  // namespace mcr
