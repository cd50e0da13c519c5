// The launcher of the contrastive losses on a GPU, for the other launchers that need one of them.
#pragma once

#include "core/tensors.h"

namespace mcr {
namespace cuda {

// nt_xent (`over_pairs`) or sup_con over the rows of all modalities, where they lie: row i of
// modality m is row m * N + i of a batch of L = M * N rows. One modality is a batch as it is.
// Two kernels, and no copy of contiguous embeddings of one dtype with int64 labels and bool marks.
// The arguments have been checked, but for the sizes: small.h says what is taken.
// -> loss [] float32, unit gradient [L, D] float32, or [0, 0] where none is wanted
std::tuple<Tensor, Tensor> contrastive_forward(
    bool over_pairs,
    const std::vector<Tensor>& embeddings,  // M of [N, D]
    const Tensor& labels,                   // [N], of each
    const OptionalTensor& present,          // [N, M], [N] for M = 1
    double temperature, bool want_grad);

}  // namespace cuda
}  // namespace mcr
