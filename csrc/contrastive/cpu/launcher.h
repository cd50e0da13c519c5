// The launcher of the contrastive losses, for the other launchers that need one of them.
#pragma once

#include "core/tensors.h"

namespace mcr {

// nt_xent (`over_pairs`) or sup_con -> loss [], unit_grad [L, D]
std::tuple<Tensor, Tensor> contrastive_forward(
    bool over_pairs,
    const Tensor& embeddings,       // [L, D]
    const Tensor& labels,           // [L], or [N] of L / N modalities
    const OptionalTensor& present,  // [L], or [N, L / N]
    double temperature, bool want_grad);

}  // namespace mcr
