"""A small batch of permuted_divergence: two launches, forward or backward, and nothing of torch.

What the large one does in launches of its own (permutations checked, rows laid out, weights added
up, sums over programs, the bias's gradient) the two kernels do on the way.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from mcr_fast.kernels import config
from mcr_fast.kernels.divergence import KINDS
from mcr_fast.kernels.pairs.asked import Asked, contiguous
from mcr_fast.kernels.pairs.donors import TABLE
from mcr_fast.kernels.pairs.own_side import CLEAN_PATHS, OUTSIDERS
from mcr_fast.kernels.pairs.scratch import size_of
from mcr_fast.kernels.pairs.small_donor_side import _small_donor_side_kernel
from mcr_fast.kernels.pairs.small_own_side import _small_own_side_kernel


def _launch(asked: Asked, upstream: Tensor | None, to_fill: dict[str, Tensor | None]) -> None:
    """Both kernels; `to_fill` and the unit gradients are arguments of the second."""
    x, grad = asked.contributions, to_fill["grad_ptr"] is not None
    num_modalities, num_rows, num_classes = x.shape
    num_subsets, num_permutations = len(asked.subsets), asked.num_permutations
    # what has to be permutations, [lines, N]
    permutations = asked.donors if asked.scheme == TABLE.value else asked.order
    if asked.donors is None:
        permutations = None
    lines = 0 if permutations is None else permutations.numel() // num_rows
    sizes = num_subsets, num_modalities, num_rows, num_permutations, num_classes
    scratch = torch.empty(size_of(*sizes, lines), dtype=torch.float32, device=x.device)
    safe, inverse = (
        None if t is None else torch.empty(t.shape, dtype=torch.int64, device=x.device)
        for t in (asked.donors, permutations)
    )
    pairs = asked.pairs()
    common: dict[str, Any] = {
        "bias_ptr": contiguous(asked.bias),
        "upstream_ptr": upstream,
        "scratch_ptr": scratch,
        "num_classes": num_classes,
        "KIND": KINDS[asked.divergence],
        "MASKED": asked.masked,
        "PRECISE": config.PRECISE,
        "ALIGN": config.alignment(num_classes),
        "ROWS": triton.next_power_of_2(num_rows),
    }
    own = config.small_own_side(num_classes, asked.divergence)
    _small_own_side_kernel[(num_subsets * num_rows + lines,)](
        **common,
        **pairs,
        x_ptr=x.contiguous(),
        safe_ptr=safe,
        inverse_ptr=inverse,
        num_shifts=0 if asked.donors is None else asked.donors.numel(),
        GRAD=grad,
        **own.launch(),
    )
    donor = config.choose("small_donor_side", num_classes)
    class_blocks = triton.cdiv(num_classes, donor.blocks["BLOCK_C"])
    for name in ("labels_ptr", "present_ptr", "weight_ptr", "EXCLUDE"):
        del pairs[name]  # the own side has left what the pairs weigh
    pairs["donors_ptr"] = safe
    _small_donor_side_kernel[(class_blocks * num_rows, num_modalities + 1) if grad else (1, 1)](
        **common,
        **pairs,
        **to_fill,
        inverse_ptr=inverse if asked.scheme == TABLE.value else safe,
        lines=lines,
        share=asked.share,
        SINGLE=asked.single,
        CLEAN_PATH=CLEAN_PATHS[asked.clean_path],
        OUTSIDER=OUTSIDERS[asked.strategy],
        **donor.launch(),
    )


def small_forward(
    asked: Asked, want_grad: bool
) -> tuple[Tensor, Tensor, Tensor]:  # [S], [M, N, C], [C]
    """The divergences, and with `want_grad` the gradients for upstream gradients of 1."""
    shape = asked.contributions.shape if want_grad else (0, 0, 0)
    device = asked.contributions.device
    values, grad, grad_bias = (
        torch.empty(size, dtype=torch.float32, device=device)
        for size in (len(asked.subsets), shape, shape[2])
    )
    to_fill: dict[str, Tensor | None] = dict.fromkeys(
        ["unit_ptr", "unit_bias_ptr", "grad_ptr", "grad_bias_ptr"]
    )
    if want_grad:
        to_fill |= {"grad_ptr": grad, "grad_bias_ptr": grad_bias}
    _launch(asked, None, to_fill | {"values_ptr": values})
    return values, grad, grad_bias


def small_backward(
    asked: Asked,
    upstream: Tensor,  # [S]
    units: tuple[Tensor, Tensor],  # [M, N, C], [C]
    dtypes: tuple[torch.dtype, torch.dtype],
) -> tuple[Tensor, Tensor]:  # [M, N, C], [C]
    """The unit gradients scaled where all upstream gradients are equal, else taken again."""
    grad = torch.empty(units[0].shape, dtype=dtypes[0], device=upstream.device)
    grad_bias = torch.empty(units[1].shape, dtype=dtypes[1], device=upstream.device)
    to_fill: dict[str, Tensor | None] = {
        "unit_ptr": units[0].contiguous(),
        "unit_bias_ptr": units[1].contiguous(),
        "values_ptr": None,
        "grad_ptr": grad,
        "grad_bias_ptr": grad_bias,
    }
    _launch(asked, upstream, to_fill)
    return grad, grad_bias
