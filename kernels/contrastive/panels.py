"""The gradient of a contrastive loss: H Z with H symmetric, then through the normalisation.

H is made in panels of rows that a library product takes. Its entries are weighted exponentials, but
for the positives, few tiles near the diagonal that each loss puts in afterwards; without them the
kernel over all tiles keeps to the registers it has.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels.contrastive.batch import Batch, Vectors, logit_tile
from mcr_fast.kernels.contrastive.rows import project_rows
from mcr_fast.kernels.math import exp2

# Bytes of a panel of H, within these numbers of rows: enough for a product that fills the machine,
# and a bound on memory.
_PANEL_BYTES = 1 << 27
_PANEL_ROWS = (1024, 4096)


@triton.jit
def weighted_exponentials(
    s,  # [BLOCK_M, BLOCK_N]
    weight_ptr,  # [padded L]
    max_ptr,  # [padded L]
    rows,  # [BLOCK_M]
    cols,  # [BLOCK_N]
    scale,
    RUNNING_MAX: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """weight_a e^s_ab + weight_b e^s_ab, each relative to its row's maximum."""
    if RUNNING_MAX:
        e_a = exp2(s - tl.load(max_ptr + rows)[:, None], PRECISE)
        e_b = exp2(s - tl.load(max_ptr + cols)[None, :], PRECISE)
    else:
        e_a = exp2(s - scale, PRECISE)
        e_b = e_a
        # Vectors loaded before they are wanted take registers, and with them the place of a second
        # block on a multiprocessor; no load moves up past a barrier.
        tl.debug_barrier()
    weight_a = tl.load(weight_ptr + rows)[:, None]
    weight_b = tl.load(weight_ptr + cols)[None, :]
    return weight_a * e_a + weight_b * e_b


@triton.jit
def store_panel(
    h_ptrs,  # [BLOCK_M, BLOCK_N]
    h,  # same
    inverse_ptrs,  # [BLOCK_N]
    h_scale_ptr,  # [1]
    mask,  # [BLOCK_M, BLOCK_N] or None
):
    """Store entries of H as the product takes them."""
    column_factor = (tl.load(inverse_ptrs) * tl.load(h_scale_ptr))[None, :]
    tl.store(h_ptrs, (h * column_factor).to(h_ptrs.dtype.element_ty), mask=mask)


@triton.jit
def _panel_kernel(
    scaled_ptr,  # [padded L, padded D]
    inverse_ptr,  # [padded L]
    weight_ptr,  # [padded L]
    max_ptr,  # [padded L]
    num_present_ptr,  # [1]
    h_scale_ptr,  # [1]
    h_ptr,  # [panel, padded L]: h_scale H_ab inverse_b of rows first_row ..
    first_row,
    padded_rows,
    width,
    scale,
    RUNNING_MAX: tl.constexpr,
    PRECISE: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    num_present = tl.load(num_present_ptr)
    first = first_row + tl.program_id(0) * BLOCK_M
    first_col = tl.program_id(1) * BLOCK_N
    if first >= num_present:
        return
    rows = first + tl.arange(0, BLOCK_M)
    cols = first_col + tl.arange(0, BLOCK_N)
    # Columns from num_present on become 0: x', inverse and weight are. The product reads them, and
    # 0 times what memory holds may be NaN.
    width = tl.where(first_col < num_present, width, 0)
    vectors = Vectors(scaled_ptr, inverse_ptr, width, scale)
    s = logit_tile(vectors, first, first_col, DOT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
    h = weighted_exponentials(s, weight_ptr, max_ptr, rows, cols, scale, RUNNING_MAX, PRECISE)
    tl.debug_barrier()
    row_ptrs = h_ptr + (rows - first_row).to(tl.int64)[:, None] * padded_rows
    store_panel(row_ptrs + cols[None, :], h, inverse_ptr + cols, h_scale_ptr, None)


def gradient(
    batch: Batch,
    weight: Tensor,  # [padded L]
    top: Tensor,  # [padded L]
    numbers: Tensor,  # [2], H's scale and the factor of the gradient
    positives_kernel: Any,
    places: dict[str, Any],
) -> Tensor:  # [L, D] float32
    """The rows' gradient: H Z over temperature and terms, through the normalisation.

    H_ab = weight_a e^(s_ab - top_a) + weight_b e^(s_ab - top_b), but for what `positives_kernel`,
    launched with `places`, puts into the tiles that hold positives.
    """
    rows, blocks = batch.rows, batch.triangle.blocks
    padded = rows.padded_rows
    h_scale, factor = numbers[:1], numbers[1:]
    grad_x = rows.embeddings.new_empty(rows.embeddings.shape, dtype=torch.float32)
    step = max(blocks["BLOCK_M"], blocks["BLOCK_N"])
    fitting = _PANEL_BYTES // (padded * rows.scaled.element_size())
    panel_rows = min(max(fitting, _PANEL_ROWS[0]), _PANEL_ROWS[1]) // step * step
    memory = rows.scaled.new_empty((min(panel_rows, padded), padded))
    for first_row in range(0, padded, panel_rows):
        panel = memory[: padded - first_row]
        given = {
            "h_scale_ptr": h_scale,
            "h_ptr": panel,
            "first_row": first_row,
            "padded_rows": padded,
        }
        grid = (panel.shape[0] // blocks["BLOCK_M"], padded // blocks["BLOCK_N"])
        _panel_kernel[grid](
            weight_ptr=weight,
            max_ptr=top,
            RUNNING_MAX=batch.running_max,
            **given,
            **batch.tiles(batch.triangle),
        )
        positives_kernel[(panel.shape[0] // places["BLOCK_M"],)](**given, **places)
        project_rows(rows, _product(panel, rows.scaled), first_row, factor, grad_x)
    return grad_x


def scaled(
    grad: Tensor,  # []
    unit_grad: Tensor,  # [L, D] float32
    dtype: torch.dtype,
) -> Tensor:  # [L, D]
    """The backward of a contrastive loss: its unit gradient scaled and cast."""
    return torch.mul(unit_grad, grad, out=unit_grad.new_empty(unit_grad.shape, dtype=dtype))


def _product(h: Tensor, x: Tensor) -> Tensor:  # [panel, L], [L, D] -> [panel, D] float32
    with torch.autocast(h.device.type, enabled=False):
        if h.dtype == torch.float32:
            return torch.mm(h, x)
        if h.is_cuda:
            return torch.mm(h, x, out_dtype=torch.float32)
        return torch.mm(h.float(), x.float())
