"""The schemas of the ops on the Python side, for overloads that Python defines.

The compiled library defines the same ones for its default overloads, in csrc/registration.cpp; a
test holds the two against each other.
"""

_DIVERGENCE_INPUTS = (
    "Tensor contributions, Tensor? bias, Tensor? order, Tensor? donors, Tensor? labels, "
    "Tensor? present, Tensor? sample_weight, int[] subsets, str strategy, str clean_path, "
    "str divergence, str exclude"
)
_CONTRASTIVE_FWD = (
    "(Tensor embeddings, Tensor labels, Tensor? present, float temperature, bool want_grad) "
    "-> (Tensor loss, Tensor unit_grad)"
)
_CONTRASTIVE_BWD = "(Tensor grad, Tensor unit_grad, ScalarType dtype) -> Tensor"

SCHEMAS = {
    "permuted_divergence_fwd": f"({_DIVERGENCE_INPUTS}, bool want_grad) "
    "-> (Tensor divergences, Tensor unit_grad, Tensor unit_grad_bias)",
    "permuted_divergence_bwd": "(Tensor grad, Tensor unit_grad, Tensor unit_grad_bias, "
    f"{_DIVERGENCE_INPUTS}) -> (Tensor grad_contributions, Tensor grad_bias)",
    "row_divergence_fwd": "(Tensor perturbed, Tensor clean, Tensor rows, Tensor? row_weight, "
    "str divergence, bool want_grad) "
    "-> (Tensor total, Tensor weight, Tensor unit_grad_perturbed, Tensor unit_grad_clean)",
    "row_divergence_bwd": "(Tensor grad, Tensor unit_grad_perturbed, Tensor unit_grad_clean, "
    "Tensor perturbed, Tensor clean) -> (Tensor grad_perturbed, Tensor grad_clean)",
    "nt_xent_fwd": _CONTRASTIVE_FWD,
    "nt_xent_bwd": _CONTRASTIVE_BWD,
    "sup_con_fwd": _CONTRASTIVE_FWD,
    "sup_con_bwd": _CONTRASTIVE_BWD,
    "reconstruction_loss_fwd": "(Tensor[] latents, Tensor reconstruction) -> Tensor",
    "reconstruction_loss_bwd": "(Tensor grad, Tensor[] latents, Tensor reconstruction) "
    "-> (Tensor[] grad_latents, Tensor grad_reconstruction)",
}
