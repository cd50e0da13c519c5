"""Label-supervised NT-Xent: registered, and the choice of backend."""

from torch import Tensor

from mcr_fast.ops._contrastive import contrastive, register_contrastive
from mcr_fast.reference.nt_xent import nt_xent_reference

register_contrastive("nt_xent")


def nt_xent(
    embeddings: Tensor,  # [L, D]
    labels: Tensor,  # [L] int64 codes, or [N] of all modalities
    present: Tensor | None,  # [L] bool, or [N, M]
    *,
    temperature: float,
    backend: str | None,
) -> Tensor:  # []
    """Mean over positive pairs of log(1 + sum over negatives n of e^(s_an - s_ap))."""
    rows = (embeddings, labels, present)
    return contrastive("nt_xent", nt_xent_reference, *rows, temperature, backend)
