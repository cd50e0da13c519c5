"""The gradient of a contrastive loss: H Z with H symmetric, then through the normalisation.

H is made above its diagonal only, in panels that library products take: a panel of rows I and
columns J, J beyond I, times the rows of J adds to the gradient of I, and transposed, times those of
I, to that of J. For both to take the same numbers H is stored with 1 / |x'| of its rows and of its
columns. Its entries are weighted exponentials, but for the positives, few tiles near the diagonal
that each loss puts in afterwards; without them the kernel over all tiles keeps to the registers it
has.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels.contrastive.batch import Batch, Vectors, logit_tile
from mcr_fast.kernels.contrastive.rows import project_rows
from mcr_fast.kernels.math import exp2

# Bytes of a panel of H, a square: 8192 rows of 16 bits, whose product with 512 columns fills a
# machine of 132 multiprocessors with tiles of 128 x 256. A bound on memory, too.
_PANEL_BYTES = 1 << 27


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
        # Rows in the frame that are not there have logits of 0, far above a maximum of opposite
        # rows, and 0 times an infinite power would be NaN. minimum would drop NaN.
        below_a = s - tl.load(max_ptr + rows)[:, None]
        below_b = s - tl.load(max_ptr + cols)[None, :]
        e_a = exp2(tl.where(below_a > 0.0, 0.0, below_a), PRECISE)
        e_b = exp2(tl.where(below_b > 0.0, 0.0, below_b), PRECISE)
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
def panel_entries(
    h,  # [BLOCK_M, BLOCK_N]
    inverse_ptr,  # [padded L]
    rows,  # [BLOCK_M]
    cols,  # [BLOCK_N]
    h_scale_ptr,  # [1]
):
    """Entries of H as the products take them: h_scale inverse_a H_ab inverse_b."""
    h *= (tl.load(inverse_ptr + cols) * tl.load(h_scale_ptr))[None, :]
    tl.debug_barrier()  # as above
    return h * tl.load(inverse_ptr + rows)[:, None]


@triton.jit
def _panel_kernel(
    scaled_ptr,  # [padded L, padded D]
    inverse_ptr,  # [padded L]
    weight_ptr,  # [padded L]
    max_ptr,  # [padded L]
    num_present_ptr,  # [1]
    h_scale_ptr,  # [1]
    h_ptr,  # [panel rows, panel_cols], a panel of H from first_row and first_col on
    first_row,
    first_col,
    panel_cols,
    width,
    scale,
    RUNNING_MAX: tl.constexpr,
    PRECISE: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    top = first_row + tl.program_id(0) * BLOCK_M
    left = first_col + tl.program_id(1) * BLOCK_N
    if left + BLOCK_N <= top:  # below the diagonal: stored by the tile above it
        return
    rows = top + tl.arange(0, BLOCK_M)
    cols = left + tl.arange(0, BLOCK_N)
    # Rows and columns from num_present on become 0: x', inverse and weight are. The products read
    # them, and 0 times what memory holds may be NaN.
    width = tl.where(tl.maximum(top, left) < tl.load(num_present_ptr), width, 0)
    vectors = Vectors(scaled_ptr, inverse_ptr, width, scale)
    s = logit_tile(vectors, top, left, DOT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
    h = weighted_exponentials(s, weight_ptr, max_ptr, rows, cols, scale, RUNNING_MAX, PRECISE)
    tl.debug_barrier()
    h = panel_entries(h, inverse_ptr, rows, cols, h_scale_ptr).to(h_ptr.dtype.element_ty)
    rows, cols = (rows - first_row).to(tl.int64), (cols - first_col).to(tl.int64)
    tl.store(h_ptr + rows[:, None] * panel_cols + cols[None, :], h)
    if (first_row == first_col) & (left >= top + BLOCK_M):
        tl.store(h_ptr + cols[:, None] * panel_cols + rows[None, :], tl.trans(h))


def _panel_side(padded_rows: int, step: int, itemsize: int) -> int:
    """Rows and columns of a panel: as large as it may be, and all of them about alike."""
    most = max(1, math.isqrt(_PANEL_BYTES // itemsize) // step)
    steps = padded_rows // step
    return step * triton.cdiv(steps, triton.cdiv(steps, most))


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
    x, padded = rows.scaled, rows.padded_rows
    side = _panel_side(padded, max(blocks["BLOCK_M"], blocks["BLOCK_N"]), x.element_size())
    g = x.new_empty(x.shape, dtype=torch.float32)
    memory = x.new_empty(side * side)
    for first_row in range(0, padded, side):
        for first_col in range(first_row, padded, side):
            num_rows, num_cols = (min(side, padded - at) for at in (first_row, first_col))
            panel = memory[: num_rows * num_cols].view(num_rows, num_cols)
            given = {
                "h_scale_ptr": numbers[:1],
                "h_ptr": panel,
                "first_row": first_row,
                "first_col": first_col,
                "panel_cols": num_cols,
            }
            grid = (num_rows // blocks["BLOCK_M"], num_cols // blocks["BLOCK_N"])
            _panel_kernel[grid](
                weight_ptr=weight,
                max_ptr=top,
                RUNNING_MAX=batch.running_max,
                **given,
                **batch.tiles(batch.triangle),
            )
            positives_kernel[(num_rows // places["BLOCK_M"],)](**given, **places)
            of_rows = slice(first_row, first_row + num_rows)
            of_cols = slice(first_col, first_col + num_cols)
            add_product(g[of_rows], panel, x[of_cols], first=first_col == 0)
            if first_col > first_row:
                add_product(g[of_cols], panel.mT, x[of_rows], first=first_row == 0)
    return project_rows(rows, g, numbers[1:])


def scaled(
    grad: Tensor,  # []
    unit_grad: Tensor,  # [L, D] float32
    dtype: torch.dtype,
) -> Tensor:  # [L, D]
    """The backward of a contrastive loss: its unit gradient scaled and cast."""
    return torch.mul(unit_grad, grad, out=unit_grad.new_empty(unit_grad.shape, dtype=dtype))


def add_product(
    g: Tensor,  # [rows, D] float32
    h: Tensor,  # [rows, columns]
    x: Tensor,  # [columns, D]
    *,
    first: bool,
) -> None:
    """Add h x to g; or make it g, where nothing was added before."""
    beta = 0 if first else 1
    with torch.autocast(h.device.type, enabled=False):
        if h.dtype == torch.float32:
            torch.addmm(g, h, x, beta=beta, out=g)
        elif h.is_cuda:
            torch.addmm(g, h, x, out_dtype=torch.float32, beta=beta, out=g)
        else:
            torch.addmm(g, h.float(), x.float(), beta=beta, out=g)
