"""Label-supervised NT-Xent: fake, autograd and the choice of backend."""

from torch import Tensor

from mcr_fast.ops._backend import resolve
from mcr_fast.ops._modes import wants_gradient
from mcr_fast.ops._overloads import of_backend
from mcr_fast.ops._unit_grad import register_unit_grad_op
from mcr_fast.reference.nt_xent import nt_xent_reference

register_unit_grad_op("nt_xent")


def nt_xent(
    embeddings: Tensor,  # [L, D]
    labels: Tensor,  # [L] int64 codes
    present: Tensor | None,  # [L] bool
    *,
    temperature: float,
    backend: str | None,
) -> Tensor:  # []
    """Mean over positive pairs of log(1 + sum over negatives n of e^(s_an - s_ap))."""
    chosen = resolve(
        "nt_xent", backend, embeddings.device, embeddings.dtype, size=embeddings.shape[0]
    )
    if chosen == "reference":
        return nt_xent_reference(embeddings, labels, present, temperature)
    forward = of_backend("nt_xent_fwd", chosen)
    loss: Tensor = forward(embeddings, labels, present, temperature, wants_gradient(embeddings))[0]
    return loss
