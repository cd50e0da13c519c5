"""NT-Xent, its gradient taken in the forward.

For a positive pair (a, p), with N_a = sum over negatives n of e^s_an,

    loss_ap = log(1 + e^x),  sigma_ap = e^x / (1 + e^x),  x = log N_a - s_ap,

and the gradient to z is H Z with c_a = sum_p sigma_ap and H symmetric:

    H_ab = c_a e^s_ab / N_a + c_b e^s_ab / N_b on negatives, -(sigma_ab + sigma_ba) on positives.
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
from mcr_fast.kernels.contrastive.panels import gradient, panel_entries, scaled
from mcr_fast.kernels.contrastive.small import small_forward
from mcr_fast.kernels.math import exp2, log2_1p, reciprocal
from mcr_fast.pairing import of_all_rows


@triton.jit
def _nt_xent_pairs_kernel(
    scaled_ptr,  # [padded L, padded D]
    inverse_ptr,  # [padded L]
    begin_ptr,  # [padded L]
    end_ptr,  # [padded L]
    log2_sum_ptr,  # [padded L]: log2 N_a
    num_present_ptr,  # [1]
    loss_ptr,  # [padded L] float64, in units of log2
    c_ptr,  # [padded L] float64
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
    log2_sum = tl.load(log2_sum_ptr + rows)[:, None]
    loss = tl.zeros([BLOCK_M], tl.float64)
    c = tl.zeros([BLOCK_M], tl.float64)
    for first_col in range(of_class.low, of_class.high, BLOCK_N):
        s = logit_tile(vectors, first, first_col, DOT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
        cols = first_col + tl.arange(0, BLOCK_N)
        positive = same_label(of_class, cols) & (cols[None, :] != rows[:, None])
        x = log2_sum - s
        t = exp2(-tl.abs(x), PRECISE)
        sigma = tl.where(x >= 0.0, 1.0, t) * reciprocal(1.0 + t, PRECISE)
        # maximum would turn NaN into 0
        term = tl.where(x <= 0.0, 0.0, x) + log2_1p(t, PRECISE)
        loss += tl.sum(tl.where(positive, term, 0.0), 1).to(tl.float64)
        c += tl.sum(tl.where(positive, sigma, 0.0), 1).to(tl.float64)
    tl.store(loss_ptr + rows, loss)
    tl.store(c_ptr + rows, c)


@triton.jit
def _nt_xent_positives_kernel(
    scaled_ptr,  # [padded L, padded D]
    inverse_ptr,  # [padded L]
    begin_ptr,  # [padded L]
    end_ptr,  # [padded L]
    log2_sum_ptr,  # [padded L]
    num_present_ptr,  # [1]
    h_scale_ptr,  # [1]
    h_ptr,  # [panel rows, panel_cols], a panel of H from first_row and first_col on
    first_row,
    first_col,
    panel_cols,
    width,
    scale,
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
    row_log2_sum = tl.load(log2_sum_ptr + rows)[:, None]
    row_ptrs = h_ptr + (rows - first_row).to(tl.int64)[:, None] * panel_cols
    columns = within(of_class, first_col, panel_cols)
    for tile_col in range(columns.low, columns.high, BLOCK_N):
        s = logit_tile(vectors, first, tile_col, DOT_PRECISION, BLOCK_M, BLOCK_N, BLOCK_K)
        cols = tile_col + tl.arange(0, BLOCK_N)
        # sigma = 1 / (1 + 2^-x), 0 where that power is infinite
        row_odds = exp2(s - row_log2_sum, PRECISE)
        col_odds = exp2(s - tl.load(log2_sum_ptr + cols)[None, :], PRECISE)
        h = -reciprocal(1.0 + row_odds, PRECISE) - reciprocal(1.0 + col_odds, PRECISE)
        h = tl.where(cols[None, :] == rows[:, None], 0.0, h)
        h = panel_entries(h, inverse_ptr, rows, cols, h_scale_ptr)
        h_ptrs = row_ptrs + (cols - first_col)[None, :]
        tl.store(h_ptrs, h.to(h_ptr.dtype.element_ty), mask=same_label(of_class, cols))


def nt_xent_fwd(
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
        return small_forward("nt_xent", embeddings, labels, present, temperature, want_grad)
    labels, present = of_all_rows(len(embeddings), labels, present)
    batch = make_batch(embeddings, labels, present, temperature, past_class=True)
    total, top, log2_sum = exp_sums(batch)
    places = batch.positives(log2_sum_ptr=log2_sum)
    loss, c = (batch.rows.per_row(torch.float64) for _ in range(2))
    _nt_xent_pairs_kernel[batch.diagonal_tiles](loss_ptr=loss, c_ptr=c, **places)
    value, weight, numbers = finish(batch, loss, c, total, top, want_grad)
    if weight is None:
        return value, value.new_empty((0, 0))
    return value, gradient(batch, weight, top, numbers, _nt_xent_positives_kernel, places)


nt_xent_bwd = scaled
