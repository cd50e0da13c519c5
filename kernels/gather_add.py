"""Perturbed hidden rows of an additive fusion, activated on request, and their gradient.

    h[k, i] = hidden_i + sum over m in S of (A_m[j] - A_m[i]),   j = donors[m, k, i]

A program has a tile of rows and runs through their permutations, so that what belongs to the rows
themselves is read once. The backward is that kernel again, for the own side: it sums over the
permutations what reaches a row itself, and takes the gradient through the activation on its way.
The donor side is a second one, through the receivers of a tile of donors. No two programs add to
one address.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels import config
from mcr_fast.kernels.arguments import choice
from mcr_fast.kernels.math import exp2, reciprocal
from mcr_fast.kernels.pairs.donors import KEEP_ALL, TABLE, Options, Pairs, receivers_of
from mcr_fast.kernels.pairs.rows import Subset, Tile, load_members, subset_of

NONE = tl.constexpr(0)
RELU = tl.constexpr(1)
GELU = tl.constexpr(2)
GELU_TANH = tl.constexpr(3)
ACTIVATIONS = {"none": 0, "relu": 1, "gelu": 2, "gelu_tanh": 3}

SQRT_HALF = tl.constexpr(0.70710678118654752440)
DENSITY_AT_0 = tl.constexpr(0.39894228040143267794)  # of the normal distribution
HALF_LOG2E = tl.constexpr(0.72134752044448170368)
TANH_SLOPE = tl.constexpr(1.59576912160573071176)  # 2 sqrt(2 / pi)
TANH_LOG2_SLOPE = tl.constexpr(2.30220819814432504)  # the same times log2(e)
TANH_CUBIC = tl.constexpr(0.044715)


@triton.jit
def activate(h, ACTIVATION: tl.constexpr, PRECISE: tl.constexpr):
    """The activation of the hidden rows."""
    if ACTIVATION == RELU:
        return tl.where(h <= 0.0, 0.0, h)  # NaN stays
    elif ACTIVATION == GELU:
        return 0.5 * h * (1.0 + tl.erf(h * SQRT_HALF))
    elif ACTIVATION == GELU_TANH:
        # (1 + tanh u) / 2 is the logistic function of 2 u
        u = h * (h * h * TANH_CUBIC + 1.0)
        return h * reciprocal(1.0 + exp2(-u * TANH_LOG2_SLOPE, PRECISE), PRECISE)
    else:
        return h


@triton.jit
def through_activation(grad, h, ACTIVATION: tl.constexpr, PRECISE: tl.constexpr):
    """The gradient of the hidden rows from that of the activated ones."""
    if ACTIVATION == RELU:
        return tl.where(h <= 0.0, 0.0, grad)
    elif ACTIVATION == GELU:
        density = exp2(-h * h * HALF_LOG2E, PRECISE) * DENSITY_AT_0
        return grad * (h * density + 0.5 * (1.0 + tl.erf(h * SQRT_HALF)))
    elif ACTIVATION == GELU_TANH:
        cubic = h * h * TANH_CUBIC
        # the smaller one of `on` and 1 - `on` without subtraction, which would lose its digits
        small = exp2(-tl.abs(h) * (cubic + 1.0) * TANH_LOG2_SLOPE, PRECISE)
        large = reciprocal(1.0 + small, PRECISE)
        small = small * large
        on = tl.where(h < 0.0, small, large)
        off = tl.where(h < 0.0, large, small)
        return grad * on * (h * off * ((3.0 * cubic + 1.0) * TANH_SLOPE) + 1.0)
    else:
        return grad


class Program(NamedTuple):
    """One program's rows of a chunk, and what all their permutations share."""

    tile: Tile
    subset: Subset
    kept_ptr: Any  # [K, stop - start] or None
    start: Any
    stop: Any
    clean: Any  # [BLOCK_R, BLOCK_H] hidden rows
    own: Any  # [BLOCK_R, BLOCK_H], the members' sum at the rows


@triton.jit
def rows_and_columns(first, column_tiles, BLOCK_R: tl.constexpr, BLOCK_H: tl.constexpr):
    """Rows, from `first` on, and columns of this program."""
    tile = tl.program_id(0)
    rows = first + (tile // column_tiles).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    return rows, tile % column_tiles * BLOCK_H + tl.arange(0, BLOCK_H)


@triton.jit
def load_clean(tile, subset, hidden_ptr, options, NEEDED: tl.constexpr):
    """The hidden rows of a tile and the members' sum there, if they are NEEDED."""
    clean = tl.zeros(tile.inside.shape, tl.float32)
    own = clean
    if NEEDED:
        at = tile.rows[:, None] * tile.num_classes + tile.classes[None, :]
        clean = tl.load(hidden_ptr + at, mask=tile.inside, other=0.0)
        own = load_members(tile, subset, tile.rows, 0, options, False)
    return clean, own


@triton.jit
def pair_places(rows, k, start, stop):
    """Where the pairs (k, row) stand in a chunk."""
    return (tl.full((), 0, tl.int64) + k) * (stop - start) + rows - start


@triton.jit
def perturbed_rows(program, k, at, options):
    """h of the rows under permutation k, whose pairs stand `at`; 0 where the pair is dropped."""
    rows = program.tile.rows
    there = load_members(program.tile, program.subset, rows, k, options, True)
    h = program.clean + (there - program.own)
    if program.kept_ptr is not None:
        # rows behind the chunk's have pairs of their own in the table, but none in `kept`
        at = tl.where(rows < program.stop, at, 0)
        inside = rows < program.tile.pairs.num_rows
        kept = tl.load(program.kept_ptr + at, mask=inside, other=0)
        h = tl.where((kept != 0)[:, None], h, 0.0)
    return h


@triton.jit
def _gather_add_rows_kernel(
    grad_ptr,  # [K, stop - start, H] in the backward, None in the forward
    x_ptr,  # [M, N, H]
    hidden_ptr,  # [N, H]
    donors_ptr,  # [1 or M, K, N]
    kept_ptr,  # [K, stop - start] or None
    out_ptr,  # [K, stop - start, H]: the rows, or their gradient; None where that is grad_ptr's
    sums_ptr,  # [stop - start, H] in the backward
    subset,
    num_modalities,
    num_rows,
    num_permutations,
    width,
    start,
    stop,
    part_permutations,
    column_tiles,
    ACTIVATION: tl.constexpr,
    OWN_DONORS: tl.constexpr,
    SINGLE: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    rows, columns = rows_and_columns(start, column_tiles, BLOCK_R, BLOCK_H)
    inside = (rows < stop)[:, None] & (columns < width)[None, :]
    pairs = Pairs(donors_ptr, None, None, None, None, num_modalities, num_rows, num_permutations)
    tile = Tile(x_ptr, None, pairs, width, rows, columns, inside)
    members = subset_of(subset, num_modalities)
    clean, own = load_clean(
        tile, members, hidden_ptr, Options(TABLE, OWN_DONORS, SINGLE, KEEP_ALL), out_ptr is not None
    )
    program = Program(tile, members, kept_ptr, start, stop, clean, own)
    total = tl.zeros([BLOCK_R, BLOCK_H], tl.float32)
    first = tl.program_id(1) * part_permutations
    for k in range(first, tl.minimum(first + part_permutations, num_permutations)):
        pair = pair_places(rows, k, start, stop)
        at = pair[:, None] * width + columns[None, :]
        if grad_ptr is not None:
            grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
        if out_ptr is not None:
            h = perturbed_rows(program, k, pair, Options(TABLE, OWN_DONORS, SINGLE, KEEP_ALL))
            if grad_ptr is None:
                out = activate(h, ACTIVATION, PRECISE)
            else:
                grad = through_activation(grad, h, ACTIVATION, PRECISE)
                out = grad
            tl.store(out_ptr + at, out.to(out_ptr.dtype.element_ty), mask=inside)
        if grad_ptr is not None:
            total += grad
    if grad_ptr is not None:
        at = (rows - start)[:, None] * width + columns[None, :]
        tl.store(sums_ptr + at, total, mask=inside)


@triton.jit
def _gather_add_donor_side_kernel(
    grad_hidden_ptr,  # [K, stop - start, H]
    inverse_ptr,  # [1 or M, K, N]
    total_ptr,  # [M, N, H] float32, added to
    subset,
    num_rows,
    num_permutations,
    width,
    start,
    stop,
    column_tiles,
    OWN_DONORS: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_H: tl.constexpr,
):
    m = tl.program_id(1)
    if (subset >> m) & 1 == 0:
        return
    rows, columns = rows_and_columns(0, column_tiles, BLOCK_R, BLOCK_H)
    inside = (rows < num_rows)[:, None] & (columns < width)[None, :]
    pairs = Pairs(None, None, None, None, None, 0, num_rows, num_permutations)
    total = tl.zeros([BLOCK_R, BLOCK_H], tl.float32)
    for k in range(num_permutations):
        i = receivers_of(
            rows, m, k, pairs, inverse_ptr, Options(TABLE, OWN_DONORS, False, KEEP_ALL)
        )
        given = inside & ((i >= start) & (i < stop))[:, None]
        at = pair_places(i, k, start, stop)[:, None] * width + columns[None, :]
        total += tl.load(grad_hidden_ptr + at, mask=given, other=0.0).to(tl.float32)
    at = (m.to(tl.int64) * num_rows + rows)[:, None] * width + columns[None, :]
    tl.store(total_ptr + at, tl.load(total_ptr + at, mask=inside, other=0.0) + total, mask=inside)


def _tiles(num_rows: int, width: int) -> tuple[int, dict[str, int]]:
    """How many tiles cover the rows, and how they are launched."""
    chosen = config.choose("gather_add", width)
    column_tiles = triton.cdiv(width, chosen.blocks["BLOCK_H"])
    tiles = triton.cdiv(num_rows, chosen.blocks["BLOCK_R"]) * column_tiles
    return tiles, {"column_tiles": column_tiles, **chosen.launch()}


def _launch_rows(
    grad: Tensor | None,
    x: Tensor,
    hidden: Tensor,
    donors: Tensor,
    kept: Tensor | None,
    subset: int,
    bounds: tuple[int, int],
    activation: str,
    out: Tensor | None,
    sums: Tensor | None,
) -> None:
    num_modalities, num_rows, width = x.shape
    start, stop = bounds
    count = donors.shape[1]
    tiles, options = _tiles(stop - start, width)
    parts, each = config.parts(tiles, count) if grad is None else (1, count)
    _gather_add_rows_kernel[(tiles, parts)](
        grad_ptr=grad,
        x_ptr=x,
        hidden_ptr=hidden,
        donors_ptr=donors,
        kept_ptr=None if kept is None else kept.to(torch.int8),
        out_ptr=out,
        sums_ptr=sums,
        subset=subset,
        num_modalities=num_modalities,
        num_rows=num_rows,
        num_permutations=count,
        width=width,
        start=start,
        stop=stop,
        part_permutations=each,
        ACTIVATION=ACTIVATIONS[activation],
        OWN_DONORS=donors.shape[0] > 1,
        SINGLE=subset & (subset - 1) == 0,
        PRECISE=config.PRECISE,
        **options,
    )


def gather_add_fwd(
    x: Tensor,  # [M, N, H] contiguous
    hidden: Tensor,  # [N, H] float32, the clean rows
    donors: Tensor,  # [1 or M, K, N] int64 contiguous
    kept: Tensor | None,  # [K * (stop - start)] bool
    subset: int,
    start: int,
    stop: int,
    activation: str,
    dtype: torch.dtype,
) -> Tensor:  # [K * (stop - start), H]
    """The perturbed rows start..stop of every permutation."""
    choice("activation", activation, ACTIVATIONS)
    shape = (donors.shape[1] * (stop - start), x.shape[2])
    out = torch.empty(shape, dtype=dtype, device=x.device)
    if out.numel() > 0:
        given = x, hidden, donors, kept, subset, (start, stop), activation
        _launch_rows(None, *given, out, None)
    return out


def gather_add_bwd(
    grad: Tensor,  # [K * (stop - start), H]
    x: Tensor,  # and on: as the forward took them
    hidden: Tensor,
    donors: Tensor,
    kept: Tensor | None,
    subset: int,
    start: int,
    stop: int,
    activation: str,
    inverse: Tensor,  # [1 or M, K, N] int64 contiguous, of the donors
    total: Tensor,  # [M, N, H] float32 contiguous, added to
) -> Tensor:  # [stop - start, H] float32
    """Add what the subset's donors get to `total`, return what reaches the rows themselves."""
    choice("activation", activation, ACTIVATIONS)
    num_modalities, num_rows, width = x.shape
    sums = torch.zeros((stop - start, width), dtype=torch.float32, device=x.device)
    if grad.numel() == 0:
        return sums
    grad = grad.contiguous()
    grad_hidden = None if activation == "none" else torch.empty_like(grad)
    given = x, hidden, donors, kept, subset, (start, stop), activation
    _launch_rows(grad, *given, grad_hidden, sums)
    tiles, options = _tiles(num_rows, width)
    _gather_add_donor_side_kernel[(tiles, num_modalities)](
        grad_hidden_ptr=grad if grad_hidden is None else grad_hidden,
        inverse_ptr=inverse,
        total_ptr=total,
        subset=subset,
        num_rows=num_rows,
        num_permutations=donors.shape[1],
        width=width,
        start=start,
        stop=stop,
        OWN_DONORS=donors.shape[0] > 1,
        **options,
    )
    return sums
