"""Supervised contrastive loss: fake, autograd and the choice of backend."""

from torch import Tensor

from mcr_fast.ops._backend import resolve
from mcr_fast.ops._modes import wants_gradient
from mcr_fast.ops._overloads import of_backend
from mcr_fast.ops._unit_grad import register_unit_grad_op
from mcr_fast.reference.sup_con import sup_con_reference

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
    chosen = resolve(
        "sup_con", backend, embeddings.device, embeddings.dtype, size=embeddings.shape[0]
    )
    if chosen == "reference":
        return sup_con_reference(embeddings, labels, present, temperature)
    forward = of_backend("sup_con_fwd", chosen)
    loss: Tensor = forward(embeddings, labels, present, temperature, wants_gradient(embeddings))[0]
    return loss
