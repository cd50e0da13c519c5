"""Supervised contrastive loss, its gradient taken in the forward.

With E_a = sum over j != a of e^s_aj and P(a) the positives of a,

    loss_a = log E_a - 1/|P(a)| sum_p s_ap

over the anchors that have one, and the gradient to z is H Z with H symmetric, 0 on the diagonal:

    H_ab = e^s_ab / E_a + e^s_ab / E_b - [a and b are positives] (1/|P(a)| + 1/|P(b)|).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels import config
from mcr_fast.kernels.arguments import check_rows
from mcr_fast.kernels.contrastive.batch import (
    Vectors,
    class_columns,
    logit_tile,
    make_batch,
    nothing,
    same_label,
    within,
)
from mcr_fast.kernels.contrastive.exp_sums import exp_sums
from mcr_fast.kernels.contrastive.finish import finish
from mcr_fast.kernels.contrastive.panels import (
    gradient,
    panel_entries,
    scaled,
    weighted_exponentials,
)
from mcr_fast.kernels.contrastive.small import small_forward
from mcr_fast.kernels.math import reciprocal
from mcr_fast.pairing import of_all_rows


@triton.jit
def _sup_con_sums_kernel(
    scaled_ptr,  # [padded L, padded D]
    inverse_ptr,  # [padded L]
    begin_ptr,  # [padded L]
    end_ptr,  # [padded L]
    num_present_ptr,  # [1]
    sum_ptr,  # [padded L] float64: sum over p of s_ap
    width,
    scale,
    PRECISE: tl.constexpr,
    DOT_PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    first = tl.program_id(0) * BLOCK_M
    vectors = Vectors(scaled_ptr, inverse_ptr, width, scale)
    of_class = class_columns(begin_ptr, end_ptr, num_present_ptr, first, BLOCK_M, BLOCK_N)
    rows = of_class.rows
    total = tl.zeros([BLOCK_M], tl.float64)
    for first_col in range(of_class.low, of_class.high, BLOCK_N):
        s = logit_tile(vectors, first, first_col, DOT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
        cols = first_col + tl.arange(0, BLOCK_N)
        positive = same_label(of_class, cols) & (cols[None, :] != rows[:, None])
        total += tl.sum(tl.where(positive, s, 0.0), 1).to(tl.float64)
    tl.store(sum_ptr + rows, total)


@triton.jit
def _sup_con_positives_kernel(
    scaled_ptr,  # [padded L, padded D]
    inverse_ptr,  # [padded L]
    begin_ptr,  # [padded L]
    end_ptr,  # [padded L]
    weight_ptr,  # [padded L]: 1 / E_a relative to the maximum, 0 if a is no anchor
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
    first = first_row + tl.program_id(0) * BLOCK_M
    vectors = Vectors(scaled_ptr, inverse_ptr, width, scale)
    of_class = class_columns(begin_ptr, end_ptr, num_present_ptr, first, BLOCK_M, BLOCK_N)
    rows = of_class.rows
    # rows of one class have the same |P|
    both = 2.0 * reciprocal(
        tl.maximum(of_class.end - of_class.begin - 1, 1).to(tl.float32), PRECISE
    )
    row_ptrs = h_ptr + (rows - first_row).to(tl.int64)[:, None] * panel_cols
    columns = within(of_class, first_col, panel_cols)
    for tile_col in range(columns.low, columns.high, BLOCK_N):
        s = logit_tile(vectors, first, tile_col, DOT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
        cols = tile_col + tl.arange(0, BLOCK_N)
        h = weighted_exponentials(s, weight_ptr, max_ptr, rows, cols, scale, RUNNING_MAX, PRECISE)
        h = tl.where(cols[None, :] == rows[:, None], 0.0, h - both)
        h = panel_entries(h, inverse_ptr, rows, cols, h_scale_ptr)
        h_ptrs = row_ptrs + (cols - first_col)[None, :]
        tl.store(h_ptrs, h.to(h_ptr.dtype.element_ty), mask=same_label(of_class, cols))


def sup_con_fwd(
    embeddings: Tensor,  # [L, D]
    labels: Tensor,  # [L] int64, or [N] of L = M * N rows, modality by modality
    present: Tensor | None,  # [L] bool, or [N, M]
    temperature: float,
    want_grad: bool,
) -> tuple[Tensor, Tensor]:  # [] float32, [L, D] or [0, 0] float32
    """The loss and, if wanted, its gradient."""
    check_rows(embeddings, labels, present, temperature)
    if len(embeddings) == 0:
        return nothing(embeddings, want_grad)
    if config.is_small_contrastive(*embeddings.shape):
        return small_forward("sup_con", embeddings, labels, present, temperature, want_grad)
    labels, present = of_all_rows(len(embeddings), labels, present)
    batch = make_batch(embeddings, labels, present, temperature, past_class=False)
    total, top, _ = exp_sums(batch)
    sums = batch.rows.per_row(torch.float64)
    _sup_con_sums_kernel[batch.diagonal_tiles](sum_ptr=sums, **batch.positives())
    value, weight, numbers = finish(batch, sums, None, total, top, want_grad)
    if weight is None:
        return value, value.new_empty((0, 0))
    places = batch.positives(weight_ptr=weight, max_ptr=top) | {"RUNNING_MAX": batch.running_max}
    return value, gradient(batch, weight, top, numbers, _sup_con_positives_kernel, places)


sup_con_bwd = scaled
