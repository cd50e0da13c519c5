"""The losses as functions of tensors: argument checks, then the op."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from mcr_fast import _checks as checks
from mcr_fast._checks import Backend, CleanPath, Divergence, Exclude, Strategy, Subsets
from mcr_fast._checks.ranks import Exchange, Ranks
from mcr_fast._torchscript import unscriptable
from mcr_fast.distributed.losses import contrastive_of_ranks, contrastive_of_rows
from mcr_fast.ops.linear_permuted_divergence import (
    linear_permuted_divergence as _linear_permuted_divergence,
)
from mcr_fast.ops.permuted_divergence import permuted_divergence as _permuted_divergence
from mcr_fast.ops.reconstruction_loss import reconstruction_loss as _reconstruction_loss
from mcr_fast.ops.row_divergence import row_divergence as _row_divergence
from mcr_fast.sampling import CyclicPermutations

__all__ = [
    "linear_permuted_divergence",
    "nt_xent",
    "permuted_divergence",
    "reconstruction_loss",
    "row_divergence",
    "sup_con",
]


@unscriptable
def permuted_divergence(
    contributions: Tensor | Sequence[Tensor],  # [M, N, C], or M tensors [N, C]
    permutations: Tensor | CyclicPermutations | None = None,  # [K, N] or [M, K, N] int64
    *,
    bias: Tensor | None = None,  # [C]
    strategy: Strategy = "greedy",
    clean_path: CleanPath = "shared",
    subsets: Subsets = "all",
    divergence: Divergence = "jsd",
    exclude: Exclude | None = None,
    labels: Tensor | None = None,  # [N]
    present: Tensor | None = None,  # [N, M] bool
    sample_weight: Tensor | None = None,  # [N]
    backend: Backend | None = None,
) -> Tensor:  # [S]
    """Divergence between additive logits and the same with modalities of other rows, per subset.

    With z_i = sum_m A_m[i] + b and w(S,i,j) = z_i + sum_{m in S} (A_m[j] - A_m[i]):
    D_S = mean over the kept pairs (i, j) of JSD(z_i, w(S,i,j)), the Jensen-Shannon divergence of
    the softmaxes in nats. L_MIPD is ``-permuted_divergence(...).sum()``.

    Args:
        contributions: the A_m, [M, N, C] or M tensors [N, C], float32, bfloat16, float16, float64.
        permutations: row i's donors j = ``table[k, i]``: int64 [K, N], for all modalities, or
            [M, K, N], each its own; or a cyclic sample of `sample_permutations`. None: every
            ordered pair i != j, the exact expectation.
        bias: b [C]; None for 0.
        strategy: route(S, m), the factor of the gradient to A_m: 1 for m in S, otherwise -1
            ``"greedy"``, 0 ``"independent"`` or +1 ``"collaborative"``. `bias` gets head(S), the
            sum of the factors (1 if collaborative).
        clean_path: the factors along z: head(S) for all ``"shared"`` (the published code), the same
            as along w ``"routed"`` (the paper's equations), 0 ``"detached"``.
        subsets: ``"single"`` {0}..{M-1}; ``"all"`` non-empty proper ones, by size, then in order.
        divergence: ``"jsd"``; ``"mse"``, mean over C of (z - w)^2; ``"binary_jsd"``, mean over C of
            the JSD of the Bernoulli distributions sigmoid(z_c) and sigmoid(w_c).
        exclude: None; ``"self"`` drops j == i; ``"same_label"`` drops pairs of equal label. With
            own donors a pair must pass for every member of S.
        labels: [N] ints or floats, compared by equality, for ``exclude="same_label"``.
        present: bool [N, M]; a pair counts if all of S is present in row i and in its donors.
        sample_weight: [N] >= 0, weight of row i's pairs in the mean; 0 drops them.
        backend: None for the best one, or ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"``.

    Returns:
        D [S], float32 (float64 for float64); 0 with zero gradient where no pair is kept.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or value; a table row
            that is no permutation (on a GPU only with MCR_FAST_CHECK=1; without, D is NaN); with
            MCR_FAST_CHECK=1 infinite logits too.
        RuntimeError: a backend that is not available here.

    Note:
        The value is the plain mean, the gradient is routed: finite differences agree with it only
        for ``strategy="collaborative", clean_path="shared"``. Arithmetic in float32 at least; NaN
        or Inf in a kept pair gives NaN; the same bits every run on a machine; no double backward.
        Classes are masked with large finite numbers, up to the largest there is: rows that agree
        in one add nothing to it, and a common offset of all logits costs the JSD no digits.

    Reference:
        Equations 9-13 of arXiv 2411.07335.

    Example:
        >>> import torch, mcr_fast
        >>> contributions = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 0.0]]])
        >>> mcr_fast.functional.permuted_divergence(contributions)
        tensor([0.1109, 0.0000])
    """
    x = checks.stacked_contributions(contributions)
    checks.no_infinite_logits("contributions", x)
    given: dict[str, Any] = {
        "strategy": strategy,
        "clean_path": clean_path,
        "subsets": subsets,
        "divergence": divergence,
        "exclude": exclude,
        "labels": labels,
        "present": present,
        "sample_weight": sample_weight,
        "backend": backend,
    }
    edge = (x.shape, x.device, permutations, bias)
    pairs, options = checks.divergence_arguments(*edge, False, **given)
    try:
        return _permuted_divergence(x, bias, *pairs, **options, backend=backend)
    except RuntimeError:
        checks.divergence_arguments(*edge, True, **given)
        raise


@unscriptable
def linear_permuted_divergence(
    latents: Sequence[Tensor],  # M tensors [N, D_m]
    weight: Tensor,  # [C, sum of D_m]
    permutations: Tensor | CyclicPermutations | None = None,  # [K, N] or [M, K, N] int64
    *,
    bias: Tensor | None = None,  # [C]
    backend: Backend | None = None,
    **options: Any,
) -> Tensor:  # [S]
    """`permuted_divergence` of a linear layer over concatenated latents, from the latents.

    The contributions are Z_m times the weight's columns of modality m. One node of the autograd
    graph instead of a chain of small ones: what a small batch spends its time on.

    Args:
        latents: the Z_m, M tensors [N, D_m] of the weight's dtype.
        weight: [C, sum of D_m], as of the nn.Linear.
        permutations: as in `permuted_divergence`.
        bias: b [C]; None for 0.
        backend: as in `permuted_divergence`.
        options: its further keyword arguments.

    Returns:
        D [S], as `permuted_divergence`.

    Raises:
        ValueError, TypeError, RuntimeError: as `permuted_divergence`; latents that do not fit.

    Note:
        Gradients, numerics and determinism as in `permuted_divergence`; the columns of modality m
        get what Z_m gets.

    Reference:
        Equations 9-13 of arXiv 2411.07335.

    Example:
        >>> import torch, mcr_fast
        >>> latents = [torch.eye(2), torch.zeros(2, 3)]
        >>> mcr_fast.functional.linear_permuted_divergence(latents, torch.eye(2, 5))
        tensor([0.1109, 0.0000])
    """
    parts = checks.linear_latents(latents, weight)
    shape = (len(parts), parts[0].shape[0], weight.shape[0])
    edge = (shape, weight.device, permutations, bias)
    options["backend"] = backend
    pairs, named = checks.divergence_arguments(*edge, False, **options)
    try:
        return _linear_permuted_divergence(parts, weight, bias, *pairs, **named, backend=backend)
    except RuntimeError:
        checks.divergence_arguments(*edge, True, **options)
        raise


@unscriptable
def row_divergence(
    perturbed: Tensor,  # [R, C]
    clean: Tensor,  # [N, C]
    rows: Tensor,  # [R] int64
    *,
    row_weight: Tensor | None = None,  # [R]
    divergence: Divergence = "jsd",
    backend: Backend | None = None,
) -> Tensor:  # []
    """Weighted mean divergence between perturbed logits and the clean rows they belong to.

    sum_r weight_r JSD(clean[rows[r]], perturbed[r]) / sum_r weight_r, in nats

    Args:
        perturbed: logits [R, C].
        clean: logits [N, C]; not expanded to [R, C].
        rows: int64 [R] in 0..N-1, the clean row of each perturbed row.
        row_weight: [R] >= 0, None for 1; 0 drops a row.
        divergence: as in `permuted_divergence`.
        backend: as in `permuted_divergence`.

    Returns:
        0-d, float32 (float64 for float64); 0 with zero gradient if the weights sum to 0.

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or value.
        RuntimeError: a backend that is not available here.

    Note:
        True gradients to `perturbed` and `clean`; numerics as in `permuted_divergence`.

    Reference:
        The divergence of equation 9 of arXiv 2411.07335.

    Example:
        >>> import torch, mcr_fast
        >>> clean = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> mcr_fast.functional.row_divergence(clean.flip(0), clean, torch.tensor([0, 1]))
        tensor(0.1109)
    """
    checks.divergence_options("greedy", "shared", divergence, None, backend)
    checks.row_logits(perturbed, clean)
    checks.no_infinite_logits("perturbed", perturbed)
    checks.no_infinite_logits("clean", clean)
    device, num_rows = clean.device, perturbed.shape[0]

    def check(read: bool) -> None:
        checks.row_index(rows, num_rows, clean.shape[0], device, read=read)
        checks.check_weight("row_weight", row_weight, num_rows, "[R]", device, read=read)

    check(read=not checks.kernel_reads("row_divergence", backend, device, 1))
    try:
        return _row_divergence(
            perturbed, clean, rows, row_weight, divergence=divergence, backend=backend
        )
    except RuntimeError:
        check(read=True)
        raise


@unscriptable
def nt_xent(
    embeddings: Tensor | Sequence[Tensor],  # M tensors [N, D], or one [L, D]
    labels: Tensor | None = None,  # [N], or [L] for one tensor
    *,
    temperature: float = 0.5,
    present: Tensor | None = None,  # [N, M] bool, or [L] for one tensor
    process_group: Any = None,
    exchange: Exchange = "gather",
    rows: int | None = None,
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
        process_group: a ProcessGroup, or a DeviceMesh of one dimension: anchors are this rank's
            rows, columns those of all its ranks (docs/distributed.md). None: this process's alone.
        exchange: ``"gather"`` takes memory for all ranks' rows; ``"ring"`` for two ranks' rows,
            and sends them once a pass.
        rows: with a group the most rows N that a rank can have, equal on all ranks; then no host
            waits for a device. None: the ranks agree on it, in one small collective.
        backend: None for the best one, or ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"``.

    Returns:
        0-d, float32 (float64 for float64); 0 with zero gradient if there is no positive pair. With
        a group the loss of all ranks' rows, equal on all; each rank's gradient is the group's size
        times the derivative by its own rows, exact where ranks' gradients are averaged (DDP).

    Raises:
        ValueError, TypeError: an argument of the wrong shape, dtype, device or value; with a group,
            on all ranks, options in which they differ (with `rows` the loss is NaN instead).
        RuntimeError: a backend that is not available here; a group that is gone.

    Note:
        With a group every rank has to call it, one without rows too; the backward talks to none.
        Memory O(L D) (the reference: O(L^2)). Accumulation in float32 at least; NaN or Inf gives
        NaN; the same bits every run on a machine; no double backward.

    Reference:
        L_Con of arXiv 2411.07335, computed there by pytorch-metric-learning's NTXentLoss.

    Example:
        >>> import torch, mcr_fast
        >>> mcr_fast.functional.nt_xent([torch.eye(2), torch.eye(2)], torch.tensor([0, 1]))
        tensor(0.2395)
    """
    ranks = checks.ranks(process_group, exchange, rows)
    return contrastive("nt_xent", embeddings, labels, temperature, present, backend, ranks=ranks)


@unscriptable
def sup_con(
    embeddings: Tensor | Sequence[Tensor],  # M tensors [N, D], or one [L, D]
    labels: Tensor | None = None,  # [N], or [L] for one tensor
    *,
    temperature: float = 0.1,
    present: Tensor | None = None,  # [N, M] bool, or [L] for one tensor
    process_group: Any = None,
    exchange: Exchange = "gather",
    rows: int | None = None,
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
        process_group: as in `nt_xent`.
        exchange: as in `nt_xent`.
        rows: as in `nt_xent`.
        backend: as in `nt_xent`.

    Returns:
        0-d, float32 (float64 for float64); 0 with zero gradient if no anchor has a positive. With
        a group as in `nt_xent`.

    Raises:
        ValueError, TypeError, RuntimeError: as `nt_xent`.

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
    ranks = checks.ranks(process_group, exchange, rows)
    return contrastive("sup_con", embeddings, labels, temperature, present, backend, ranks=ranks)


def contrastive(
    loss: str,  # "nt_xent" or "sup_con"
    embeddings: Tensor | Sequence[Tensor],
    labels: Tensor | None,
    temperature: float,
    present: Tensor | None,
    backend: Backend | None,
    name: str = "embeddings",
    ranks: Ranks | None = None,
) -> Tensor:  # []
    """Either contrastive loss; errors call the embeddings by the name that the caller knows."""
    given = (embeddings, labels, temperature, present, backend, name)
    if ranks is not None:
        return contrastive_of_ranks(ranks, loss, *given)
    temperature, rows = checks.contrastive_arguments(*given)
    return contrastive_of_rows(loss, *rows, temperature, backend)


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
    checks.known_backend(backend)
    checks.reconstruction_target(latents, reconstruction)
    return _reconstruction_loss(list(latents), reconstruction, backend=backend)
