"""A small contrastive batch: two launches, and nothing of torch.

What the large one does in launches of its own (labels sorted, rows laid out, sums of parts, the
number of terms) the two kernels do on the way. Similarities are kept, at most 4 MB: to make them
again would cost D products for each number that is read back.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from mcr_fast.kernels.config import PRECISE, choose
from mcr_fast.kernels.contrastive.small_gradient import _small_gradient_kernel
from mcr_fast.kernels.contrastive.small_rows import NT_XENT, STATISTICS, SUP_CON
from mcr_fast.kernels.contrastive.small_sums import _small_sums_kernel

KINDS = {"nt_xent": NT_XENT.value, "sup_con": SUP_CON.value}


def _arguments(x: Tensor, labels: Tensor, present: Tensor | None) -> dict[str, Any]:
    """What both kernels take of a batch."""
    strides = (0, 0) if present is None else present.stride()
    if len(strides) == 1:  # a modality's rows are behind those of the one before
        strides = (*strides, len(labels) * strides[0])
    return {
        "x_ptr": x,
        "labels_ptr": labels.contiguous(),
        "present_ptr": None if present is None else present.view(torch.int8),
        "x_row_stride": x.stride(0),
        "x_col_stride": x.stride(1),
        "present_row_stride": strides[0],
        "present_col_stride": strides[1],
        "num_rows": x.shape[0],
        "num_labels": labels.shape[0],
        "width": x.shape[1],
    }


def small_forward(
    loss: str,
    x: Tensor,  # [L, D], of M modalities one after another
    labels: Tensor,  # [N] int64, L = M * N
    present: Tensor | None,  # [N, M] bool, or [L]
    temperature: float,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:  # [] float32, [L, D] or [0, 0] float32
    """The loss "nt_xent" or "sup_con" and, if wanted, its gradient; L > 0."""
    num_rows, width = x.shape
    sums, gradient = choose("small_sums", num_rows), choose("small_gradient", num_rows)
    tile = max(
        config.blocks[side] for config in (sums, gradient) for side in ("BLOCK_M", "BLOCK_N")
    )
    padded = triton.cdiv(num_rows, tile) * tile
    scratch, value, grad_x = (
        torch.empty(shape, dtype=torch.float32, device=x.device)
        for shape in (padded * (padded + STATISTICS), (), x.shape if want_grad else (0, 0))
    )
    common = _arguments(x, labels, present) | {
        "scratch_ptr": scratch,
        "padded_rows": padded,
        "log2_scale": math.log2(math.e) / temperature,
        "KIND": KINDS[loss],
        "PRECISE": PRECISE,
    }
    _small_sums_kernel[(padded // sums.blocks["BLOCK_M"],)](
        **common,
        # tf32 holds all digits of a number of 16 bits
        DOT_PRECISION="tf32x3" if x.dtype == torch.float32 else "tf32",
        **sums.launch(),
    )
    tiles = triton.cdiv(num_rows, gradient.blocks["BLOCK_M"])
    slices = max(1, triton.cdiv(width, gradient.blocks["BLOCK_D"]))
    _small_gradient_kernel[(tiles, slices) if want_grad else (1, 1)](
        **common, value_ptr=value, grad_x_ptr=grad_x if want_grad else None, **gradient.launch()
    )
    return value, grad_x
