"""What the kernels of row_divergence do with one perturbed row against its clean row.

How both are read, which perturbed rows are a clean one's, the pair itself, and the four numbers
that the forward can leave of it in place of its gradient.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mcr_fast.kernels.divergence import (
    FARTHEST,
    JSD,
    NEAR,
    clean_rows,
    divergence_of_pair,
    in_log2,
    of_logits,
    plain_gradient,
    saturated,
)
from mcr_fast.kernels.math import LOG2E, exp2
from mcr_fast.kernels.search import first_of

# Nearer rows lose no more digits than their logits have.
APART = tl.constexpr(32.0)
# Numbers of a perturbed row, as mcr_fast/ops/row_divergence.py counts them.
NOTES = tl.constexpr(4)


class Given(NamedTuple):
    """A perturbed row and its clean one, in the units of the input."""

    w: Any  # [BLOCK_R, BLOCK_C]
    own: Any  # the same
    top: Any  # [BLOCK_R], the largest of the clean row; 0 but for a JSD
    lse: Any  # [BLOCK_R], of the clean row less its largest
    normal: Any  # [BLOCK_R]
    real: Any  # [BLOCK_C]


@triton.jit
def read_given(pair, CAREFUL: tl.constexpr):
    """READ of `divergence_of_pair`."""
    if not CAREFUL:
        step = tl.where(pair.real[None, :], (pair.w - pair.own) * LOG2E, 0.0)
        return step, pair.w * LOG2E, pair.normal
    else:
        # Rows far apart go less their largest, each: what all its classes have in common would cost
        # the digits of their difference.
        real, top = pair.real[None, :], pair.top
        largest = tl.max(tl.where(real, pair.w, -float("inf")), 1)
        apart = tl.abs(largest - top) > APART
        w = pair.w - tl.where(apart, largest, 0.0)[:, None]
        clean_base = tl.where(apart, top, 0.0)[:, None]
        step = tl.where(real, (w - (pair.own - clean_base)) * LOG2E, 0.0)
        w = (w - (top[:, None] - clean_base)) * LOG2E - pair.lse[:, None]
        return step, tl.where(real, w, -float("inf")), pair.normal & ~apart


@triton.jit
def load_tile(x_ptr, rows, classes, mask, num_classes):
    """Rows as float32; 0 outside the mask."""
    at = rows[:, None] * num_classes + classes[None, :]
    return tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def bounded(x, KIND: tl.constexpr):
    """Within what the divergence takes."""
    return saturated(x) if of_logits(KIND) else x


@triton.jit
def weight_of(
    weight_ptr,  # [R] or None
    r,  # [BLOCK_R]
    given,  # [BLOCK_R]
):
    """What perturbed rows weigh, NaN where that is negative: it cannot be refused here."""
    if weight_ptr is None:
        return given.to(tl.float32)
    else:
        weight = tl.load(weight_ptr + r, mask=given, other=0.0).to(tl.float32)
        return tl.where(weight < 0.0, float("nan"), weight)


@triton.jit
def clean_of(own, inside, real, KIND: tl.constexpr, PRECISE: tl.constexpr):
    """`clean_rows` of a tile of them, for a JSD less their largest; and that."""
    top = tl.zeros(inside.shape, tl.float32)
    if KIND == JSD:
        top = tl.max(tl.where(real[None, :], own, -float("inf")), 1)
    return clean_rows(own - top[:, None], real, inside, KIND, PRECISE), top


@triton.jit
def pair_of(w, own, clean, top, kept, real, KIND: tl.constexpr, PRECISE: tl.constexpr):
    """`divergence_of_pair` of tiles of perturbed and clean rows."""
    step = tl.where(real[None, :], in_log2(w - own, KIND), 0.0)
    return divergence_of_pair(
        step, clean, kept, real, read_given,
        Given(w, own, top, clean.lse, clean.normal, real), KIND, True, PRECISE,
    )  # fmt: skip


@triton.jit
def find_starts(
    sorted_ptr,  # [R]
    i,  # [BLOCK_R]
    num_perturbed,
    num_clean,
    steps,
):
    """Where the perturbed rows of clean rows i begin and end; the ends take those of no clean row.

    So no perturbed row is left out, and its clean row's gradient is NaN.
    """
    start = tl.where(i == 0, 0, first_of(sorted_ptr, i, num_perturbed, steps, False))
    stop = first_of(sorted_ptr, i, num_perturbed, steps, True)
    stop = tl.where(i == num_clean - 1, num_perturbed, stop)
    return start, tl.where(i < num_clean, stop - start, 0)


@triton.jit
def keys_of(rows_ptr, r, num_perturbed, num_clean):
    """The clean rows of perturbed rows r, as `find_starts` takes them."""
    real = r < num_perturbed
    key = tl.load(rows_ptr + r, mask=real, other=0)
    key = tl.minimum(tl.maximum(key, 0), num_clean - 1).to(tl.int32)
    return tl.where(real, key, num_clean)[None, :], real[None, :]


@triton.jit
def collect(
    rows_ptr,  # [R]
    order_ptr,  # [R] to fill, where the program's perturbed rows stand when sorted
    i,  # [BLOCK_R]
    num_perturbed,
    num_clean,
    BLOCK_S: tl.constexpr,
):
    """As `find_starts`, of rows that are not sorted."""
    start, count = i * 0, i * 0
    for first in range(0, num_perturbed, BLOCK_S):
        r = first + tl.arange(0, BLOCK_S)
        key, real = keys_of(rows_ptr, r, num_perturbed, num_clean)
        start += tl.sum((real & (key < i[:, None])).to(tl.int32), 1)
    for first in range(0, num_perturbed, BLOCK_S):
        r = first + tl.arange(0, BLOCK_S)
        key, real = keys_of(rows_ptr, r, num_perturbed, num_clean)
        found = real & (key == i[:, None])
        place = tl.cumsum(found.to(tl.int32), 1) + (start + count - 1)[:, None]
        tl.store(order_ptr + place, tl.zeros_like(place) + r[None, :], mask=found)
        count += tl.sum(found.to(tl.int32), 1)
    tl.debug_barrier()  # whoever reads them has not written all of them
    return start, count


@triton.jit
def store_notes(
    notes_ptr,  # [R, NOTES]
    r,  # [BLOCK_R]
    mask,  # [BLOCK_R]
    top,  # [BLOCK_R], with `lse` of the clean rows
    lse,
    pair,
):
    """What `plain_u` takes; a KL of 0 where it cannot.

    That is where the pair was not in its plain form, or where the clean row was cut to its bounds.
    """
    at = notes_ptr + NOTES * r
    tl.store(at, top, mask=mask)
    tl.store(at + 1, lse, mask=mask)
    tl.store(at + 2, pair.shift, mask=mask)
    plain = (pair.due != 0.0) & (tl.abs(top) < FARTHEST)
    tl.store(at + 3, tl.where(plain, pair.kl, 0.0), mask=mask)


@triton.jit
def plain_u(
    w,  # [BLOCK_R, BLOCK_C]
    own,  # the same
    notes_ptr,  # [R, NOTES]
    r,  # [BLOCK_R]
    kept,  # [BLOCK_R]
    PRECISE: tl.constexpr,
):
    """u of a JSD from what the forward left of it; and whether that told enough of all rows."""
    at = notes_ptr + NOTES * r
    top, lse = tl.load(at, mask=kept, other=0.0), tl.load(at + 1, mask=kept, other=0.0)
    shift, kl = tl.load(at + 2, mask=kept, other=0.0), tl.load(at + 3, mask=kept, other=0.0)
    p = exp2(in_log2(own - top[:, None], JSD) - lse[:, None], PRECISE)
    d = in_log2(tl.maximum(w, -FARTHEST) - own, JSD) - shift[:, None]
    enough = tl.min(((kl > NEAR) | ~kept).to(tl.int32), 0) != 0
    return plain_gradient(d, p, kl, PRECISE), enough


@triton.jit
def u_of_pair(w, own, known, kept, real, KIND: tl.constexpr, PRECISE: tl.constexpr):
    """u without notes; NaN where a row that is kept has no clean one."""
    w = tl.where((known | ~kept)[:, None], bounded(w, KIND), float("nan"))
    own = bounded(own, KIND)
    clean, top = clean_of(own, kept, real, KIND, PRECISE)
    return pair_of(w, own, clean, top, kept, real, KIND, PRECISE).to_perturbed
