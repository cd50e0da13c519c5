"""Supervised contrastive loss: registered, and the choice of backend."""

from torch import Tensor

from mcr_fast.ops._contrastive import contrastive, register_contrastive
from mcr_fast.reference.sup_con import sup_con_reference

register_contrastive("sup_con")


def sup_con(
    embeddings: Tensor,  # [L, D]
    labels: Tensor,  # [L] int64 codes, or [N] of all modalities
    present: Tensor | None,  # [L] bool, or [N, M]
    *,
    temperature: float,
    backend: str | None,
) -> Tensor:  # []
    """Mean over anchors of the mean over positives of log(sum over j != a of e^(s_aj - s_ap))."""
    rows = (embeddings, labels, present)
    return contrastive("sup_con", sup_con_reference, *rows, temperature, backend)
