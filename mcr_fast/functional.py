"""The losses as functions of tensors: argument checks, then the op."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mcr_fast import _checks as checks
from mcr_fast._checks import Backend, CleanPath, Divergence, Exclude, Strategy, Subsets
from mcr_fast._embedding_losses import nt_xent, reconstruction_loss, sup_con
from mcr_fast._torchscript import unscriptable
from mcr_fast.ops._linear import can_fuse, in_float32
from mcr_fast.ops._linear import linear_permuted_divergence as _linear_permuted_divergence
from mcr_fast.ops._modes import autocast_enabled
from mcr_fast.ops.permuted_divergence import permuted_divergence as _permuted_divergence
from mcr_fast.ops.row_divergence import row_divergence as _row_divergence
from mcr_fast.reference._similarity import without_autocast
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
    arguments, options = _divergence_arguments(
        x.shape,
        x.device,
        permutations,
        bias,
        strategy=strategy,
        clean_path=clean_path,
        subsets=subsets,
        divergence=divergence,
        exclude=exclude,
        labels=labels,
        present=present,
        sample_weight=sample_weight,
        backend=backend,
    )
    return _permuted_divergence(x, bias, *arguments, **options, backend=backend)


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
    shape = torch.Size((len(parts), parts[0].shape[0], weight.shape[0]))
    arguments, named = _divergence_arguments(
        shape, weight.device, permutations, bias, backend=backend, **options
    )
    if weight.dtype.itemsize == 2 or autocast_enabled(weight.device):
        with without_autocast(weight.device):
            parts, weight, bias = in_float32(parts, weight, bias)
            return _linear(parts, weight, bias, arguments, named, backend)
    return _linear(parts, weight, bias, arguments, named, backend)


def _linear(
    parts: Sequence[Tensor],  # M tensors [N, D_m]
    weight: Tensor,  # [C, sum of D_m]
    bias: Tensor | None,  # [C]
    arguments: tuple[Tensor | None, ...],
    named: dict[str, Any],
    backend: Backend | None,
) -> Tensor:  # [S]
    if can_fuse(parts, weight, backend):
        fused = (*arguments, *named.values())
        return _linear_permuted_divergence(parts, weight, bias, *fused)[0]
    columns = weight.split([z.shape[1] for z in parts], dim=1)
    contributions = torch.stack([F.linear(z, w) for z, w in zip(parts, columns, strict=True)])
    return _permuted_divergence(contributions, bias, *arguments, **named, backend=backend)


def _divergence_arguments(
    shape: torch.Size,  # M, N, C
    device: torch.device,
    permutations: Tensor | CyclicPermutations | None,
    bias: Tensor | None,
    *,
    strategy: Strategy = "greedy",
    clean_path: CleanPath = "shared",
    subsets: Subsets = "all",
    divergence: Divergence = "jsd",
    exclude: Exclude | None = None,
    labels: Tensor | None = None,
    present: Tensor | None = None,
    sample_weight: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[tuple[Tensor | None, ...], dict[str, Any]]:
    """The op's tensors after the bias, and its options in order, checked."""
    num_modalities, num_rows, num_classes = shape
    checks.divergence_options(strategy, clean_path, divergence, exclude, backend)
    masks = checks.subset_masks(subsets, num_modalities)
    order, donors = checks.donors(permutations, num_modalities, num_rows, device, seen_by_op=True)
    if bias is not None:
        checks.float_tensor("bias", bias)
        checks.shaped("bias", bias, (num_classes,), "[C]")
        checks.on_device("bias", bias, device, "contributions")
        checks.no_infinite_logits("bias", bias)
    checks.check_present(present, (num_rows, num_modalities), "[N, M]", device)
    checks.check_weight("sample_weight", sample_weight, num_rows, "[N]", device)
    codes = checks.exclusion_codes(exclude, labels, num_rows, device)
    options = {
        "subsets": masks,
        "strategy": strategy,
        "clean_path": clean_path,
        "divergence": divergence,
        "exclude": exclude or "none",
    }
    return (order, donors, codes, present, sample_weight), options


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
        divergence: ``"jsd"``, ``"mse"`` or ``"binary_jsd"`` as in `permuted_divergence`.
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
    checks.row_index(rows, len(perturbed), len(clean), clean.device)
    checks.check_weight("row_weight", row_weight, len(perturbed), "[R]", clean.device)
    return _row_divergence(
        perturbed, clean, rows, row_weight, divergence=divergence, backend=backend
    )
