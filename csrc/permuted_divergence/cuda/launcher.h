// The launcher of permuted_divergence, for the other launchers that start from something else than
// contributions.
#pragma once

#include "permuted_divergence/arguments.h"

namespace mcr {
namespace cuda {

// -> divergences [S], unit_grad [M, N, C] and unit_grad_bias [C] for an upstream gradient of ones
std::tuple<Tensor, Tensor, Tensor> permuted_divergence_forward(
    const PermutedDivergenceArguments& arguments, bool want_grad);

// -> grad_contributions [M, N, C], grad_bias [C]
std::tuple<Tensor, Tensor> permuted_divergence_backward(
    const Tensor& grad,  // [S]
    const Tensor& unit_grad, const Tensor& unit_grad_bias,
    const PermutedDivergenceArguments& arguments);

}  // namespace cuda
}  // namespace mcr
