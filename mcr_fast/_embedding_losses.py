"""The contrastive losses and the reconstruction loss of `functional`."""

from collections.abc import Sequence

from torch import Tensor

from mcr_fast import _checks as checks
from mcr_fast._checks import Backend
from mcr_fast._torchscript import unscriptable
from mcr_fast.ops.nt_xent import nt_xent as _nt_xent
from mcr_fast.ops.reconstruction_loss import reconstruction_loss as _reconstruction_loss
from mcr_fast.ops.sup_con import sup_con as _sup_con


@unscriptable
def nt_xent(
    embeddings: Tensor | Sequence[Tensor],  # M tensors [N, D], or one [L, D]
    labels: Tensor | None = None,  # [N], or [L] for one tensor
    *,
    temperature: float = 0.5,
    present: Tensor | None = None,  # [N, M] bool, or [L] for one tensor
    backend: Backend | None = None,
) -> Tensor:  # []
    """Label-supervised NT-Xent over all modalities' embeddings, the denominator of negatives only.

    With s_ab = x_a . x_b / temperature of the l2-normalised rows, the mean over ordered pairs
    a != p of equal label of log(1 + sum_{n of another label} exp(s_an - s_ap)).

    Args:
        embeddings: M tensors [N, D] or one [L, D], float32, bfloat16, float16 or float64.
        labels: [N], for every modality alike ([L] for one tensor); ints or floats, compared by
            equality, NaN equal to nothing. None: row i of all modalities has a label of its own.
        temperature: above 0.
        present: bool [N, M] ([L] for one tensor); an absent row is neither anchor nor column.
        backend: None for the best one, or ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"``.

    Returns:
        0-d, float32 (float64 for float64); 0 with zero gradient if there is no positive pair.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or value.
        RuntimeError: a backend that is not available here.

    Note:
        Memory O(L D) (the reference: O(L^2)). Accumulation in float32 at least; NaN or Inf gives
        NaN; the same bits every run on a machine; no double backward.

    Reference:
        L_Con of arXiv 2411.07335, computed there by pytorch-metric-learning's NTXentLoss.

    Example:
        >>> import torch, mcr_fast
        >>> mcr_fast.functional.nt_xent([torch.eye(2), torch.eye(2)], torch.tensor([0, 1]))
        tensor(0.2395)
    """
    return contrastive("nt_xent", embeddings, labels, temperature, present, backend)


@unscriptable
def sup_con(
    embeddings: Tensor | Sequence[Tensor],  # M tensors [N, D], or one [L, D]
    labels: Tensor | None = None,  # [N], or [L] for one tensor
    *,
    temperature: float = 0.1,
    present: Tensor | None = None,  # [N, M] bool, or [L] for one tensor
    backend: Backend | None = None,
) -> Tensor:  # []
    """Supervised contrastive loss over all modalities' embeddings.

    With s_ab as in `nt_xent`, the mean over anchors a that have a positive of
    -1/|P(a)| sum_{p in P(a)} (s_ap - log sum_{j != a} exp(s_aj)).

    Args:
        embeddings: as in `nt_xent`.
        labels: as in `nt_xent`.
        temperature: above 0.
        present: as in `nt_xent`.
        backend: as in `nt_xent`.

    Returns:
        0-d, float32 (float64 for float64); 0 with zero gradient if no anchor has a positive.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or value.
        RuntimeError: a backend that is not available here.

    Note:
        Memory and numerics as in `nt_xent`.

    Reference:
        Equation 2 of arXiv 2004.11362; in place of L_Con of arXiv 2411.07335.

    Example:
        >>> import torch, mcr_fast
        >>> embeddings = [torch.eye(2), torch.eye(2)]
        >>> mcr_fast.functional.sup_con(embeddings, torch.tensor([0, 1]), temperature=1.0)
        tensor(0.5514)
    """
    return contrastive("sup_con", embeddings, labels, temperature, present, backend)


def contrastive(
    loss: str,  # "nt_xent" or "sup_con"
    embeddings: Tensor | Sequence[Tensor],
    labels: Tensor | None,
    temperature: float,
    present: Tensor | None,
    backend: Backend | None,
    name: str = "embeddings",
) -> Tensor:  # []
    """Either contrastive loss; errors call the embeddings by the name that the caller knows."""
    temperature = checks.positive("temperature", temperature)
    checks.choice("backend", backend, checks.BACKENDS)
    x, codes, rows_present = checks.embedding_rows(embeddings, labels, present, name)
    op = _sup_con if loss == "sup_con" else _nt_xent
    return op(x, codes, rows_present, temperature=temperature, backend=backend)


@unscriptable
def reconstruction_loss(
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    reconstruction: Tensor,  # [N, sum of D_m]
    *,
    backend: Backend | None = None,
) -> Tensor:  # []
    """Mean squared error between a reconstruction and the latents side by side.

    mean over all elements of (reconstruction - [Z_1 .. Z_M])^2

    Args:
        latents: M tensors [N, D_m]; not concatenated.
        reconstruction: [N, sum of D_m], columns in the order of the latents.
        backend: as in `permuted_divergence`.

    Returns:
        0-d, float32 (float64 for float64); 0 for an empty batch.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or value.
        RuntimeError: a backend that is not available here.

    Note:
        True gradients to both; numerics as in `permuted_divergence`.

    Reference:
        L_CEB of arXiv 2411.07335.

    Example:
        >>> import torch, mcr_fast
        >>> latents = [torch.zeros(2, 1), torch.ones(2, 2)]
        >>> mcr_fast.functional.reconstruction_loss(latents, torch.ones(2, 3))
        tensor(0.3333)
    """
    checks.choice("backend", backend, checks.BACKENDS)
    checks.reconstruction_target(latents, reconstruction)
    return _reconstruction_loss(list(latents), reconstruction, backend=backend)
