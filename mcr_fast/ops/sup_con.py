"""Supervised contrastive loss: fake, autograd and the choice of backend."""

import torch
from torch import Tensor

from mcr_fast import env
from mcr_fast.ops._backend import resolve
from mcr_fast.ops._unit_grad import register_unit_grad_op
from mcr_fast.reference.sup_con import sup_con_reference

if env.cpu_library_loaded():
    register_unit_grad_op("sup_con")


def sup_con(
    embeddings: Tensor,  # [L, D]
    labels: Tensor,  # [L] int64 codes
    present: Tensor | None,  # [L] bool
    *,
    temperature: float,
    backend: str | None,
) -> Tensor:  # []
    """Mean over anchors of the mean over positives of log(sum over j != a of e^(s_aj - s_ap))."""
    if resolve("sup_con", backend, embeddings.device) == "reference":
        return sup_con_reference(embeddings, labels, present, temperature)
    want_grad = torch.is_grad_enabled() and embeddings.requires_grad
    loss, _ = torch.ops.mcr_fast.sup_con_fwd(embeddings, labels, present, temperature, want_grad)
    return loss
