"""The own side of a small batch, where a launch costs more than the arithmetic: one launch for all.

A program has one row and one subset, and many permutations of it at once: its tile is permutations
by classes. It reads the inputs as they were given and lays them out itself. Other programs of the
same launch check and invert the permutations; until that is known every number is only made fit to
read by.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mcr_fast.kernels.divergence import (
    FARTHEST,
    JSD,
    Clean,
    clean_rows,
    divergence_of_pair,
    finish_rows,
    in_log2,
    of_logits,
    saturated,
)
from mcr_fast.kernels.math import LOG2E
from mcr_fast.kernels.pairs.donors import (
    SHIFTS,
    Options,
    Pairs,
    donors_of,
    in_batch,
    input_rows,
    pair_weight,
    subset_bits,
)
from mcr_fast.kernels.pairs.permutations import check_line
from mcr_fast.kernels.pairs.rows import Tile
from mcr_fast.kernels.pairs.scratch import scratch_at
from mcr_fast.kernels.scale import all_equal


class Row(NamedTuple):
    """A row of a program, [1, BLOCK_C] each, and how it is read."""

    own: Any  # sum of the members
    rest: Any  # sum of the outsiders and the bias
    z: Any  # sum of all


class Lanes(NamedTuple):
    """What the perturbed logits of a tile of pairs are made of."""

    there: Any  # [BLOCK_K, BLOCK_C], the members' sum at the donors
    row: Row
    clean: Clean
    real: Any  # [BLOCK_C]


@triton.jit
def read_lanes(pair, CAREFUL: tl.constexpr):
    """READ of `divergence_of_pair`."""
    w = (pair.there + pair.row.rest) * LOG2E
    if CAREFUL:
        w = tl.where(pair.real[None, :], w - pair.clean.lse[:, None], -float("inf"))
    return (pair.there - pair.row.own) * LOG2E, w, pair.clean.normal


@triton.jit
def laid_out(x, real, KIND: tl.constexpr):
    """Rows as `lay_out` has them; 0 outside the classes."""
    if KIND == JSD:
        top = tl.max(tl.where(real[None, :], x, -float("inf")), 1)
        # an infinite number is NaN, as in `saturated`
        x = tl.maximum(x - top[:, None], -FARTHEST) + 0.0 * x
    elif of_logits(KIND):
        x = saturated(x)
    return tl.where(real[None, :], x, 0.0)


@triton.jit
def read_rows(tile, m, rows, KIND: tl.constexpr):
    """A_m of the rows with these positions, laid out."""
    real = tile.classes < tile.num_classes
    start = (m * tile.pairs.num_rows + input_rows(rows, tile.pairs)) * tile.num_classes
    at = start[:, None] + tile.classes[None, :]
    x = tl.load(tile.x_ptr + at, mask=real[None, :], other=0.0).to(tl.float32)
    return laid_out(x, real, KIND)


@triton.jit
def read_row(tile, bits, scratch, KIND: tl.constexpr):
    """The sums of the tile's row; laid out, its parts go to the donor side."""
    real = tile.classes < tile.num_classes
    own = tl.zeros(tile.inside.shape, tl.float32)
    rest = tl.zeros(tile.inside.shape, tl.float32)
    if tile.bias_ptr is not None:
        bias = tl.load(tile.bias_ptr + tile.classes, mask=real, other=0.0).to(tl.float32)
        rest += laid_out(bias[None, :], real, KIND)
        tl.store(scratch.bias + tile.classes[None, :], rest, mask=tile.inside)
    z = rest
    for m in range(tile.pairs.num_modalities):
        x = read_rows(tile, m, tile.rows, KIND)
        at = (m * tile.pairs.num_rows + tile.rows)[:, None] * tile.num_classes
        tl.store(scratch.rows + at + tile.classes[None, :], x, mask=tile.inside)
        z += x
        if (bits >> m) & 1:
            own += x
        else:
            rest += x
    return Row(own, rest + 0.0 * rest, z + 0.0 * z)


@triton.jit
def read_donors(tile, bits, rows, k, options, KIND: tl.constexpr):
    """The members' sum at the donors of each lane's pair."""
    there = tl.zeros([rows.shape[0], tile.classes.shape[0]], tl.float32)
    for m in range(tile.pairs.num_modalities):
        if (bits >> m) & 1:
            j = in_batch(donors_of(rows, m, k, tile.pairs, options), tile.pairs.num_rows)
            there += read_rows(tile, m, j, KIND)
    return there


@triton.jit
def note_clean_row(tile, clean, scratch):
    """Store what the donor side reads of the clean row; every subset stores the same."""
    at = tile.rows[:, None] * tile.num_classes + tile.classes[None, :]
    tl.store(scratch.p + at, clean.p, mask=tile.inside)
    tl.store(scratch.lse + tile.rows, clean.lse)
    tl.store(scratch.normal + tile.rows, clean.normal.to(tl.float32))


@triton.jit
def own_pairs(
    tile,
    mine,
    clean,
    scratch,
    s,
    bits,
    options,
    KIND: tl.constexpr,
    MASKED: tl.constexpr,
    GRAD: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Over a row's pairs: the weight of each lane's, whether it kept any, value, due, u and v."""
    num_rows, num_permutations = tile.pairs.num_rows, tile.pairs.num_permutations
    real = tile.classes < tile.num_classes
    u_sum = tl.zeros([BLOCK_K, tile.classes.shape[0]], tl.float32)
    v_sum = tl.zeros([BLOCK_K, tile.classes.shape[0]], tl.float32)
    value = tl.zeros([BLOCK_K], tl.float32)
    due = tl.zeros([BLOCK_K], tl.float32)
    total = tl.zeros([BLOCK_K], tl.float32)
    seen = tl.zeros([BLOCK_K], tl.int32)
    for first in range(0, num_permutations, BLOCK_K):
        lane = first + tl.arange(0, BLOCK_K)
        given = lane < num_permutations
        k = tl.minimum(lane, num_permutations - 1)
        rows = tl.where(given, tile.rows, num_rows)  # beyond the permutations: beyond the batch
        weight = given.to(tl.float32)
        if MASKED:
            weight = pair_weight(rows, bits, k, tile.pairs, options)
        kept = weight != 0.0
        there = read_donors(tile, bits, rows, k, options, KIND)
        pair = divergence_of_pair(
            in_log2(there - mine.own, KIND), clean, kept, real, read_lanes,
            Lanes(there, mine, clean, real), KIND, not GRAD, PRECISE,
        )  # fmt: skip
        at = (s * num_permutations + k) * num_rows + tile.rows
        if GRAD and KIND == JSD:
            tl.store(scratch.stats + 2 * at, pair.shift, mask=given)
            tl.store(scratch.stats + 2 * at + 1, pair.kl, mask=given)
        if GRAD and MASKED:
            tl.store(scratch.pair_weights + at, weight, mask=given)
        total += weight
        seen = seen | kept.to(tl.int32)
        value += tl.where(kept, weight * pair.value, 0.0)
        if GRAD:
            due += tl.where(kept, pair.due, 0.0)
            u_sum += tl.where(kept[:, None], weight[:, None] * pair.to_perturbed, 0.0)
            v_sum += tl.where(kept[:, None], weight[:, None] * pair.to_clean, 0.0)
    return total, seen, value, due, u_sum, v_sum


@triton.jit
def own_row(
    tile,
    scratch,
    s,
    bits,
    options,
    KIND: tl.constexpr,
    MASKED: tl.constexpr,
    GRAD: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Value, u and v of one row's pairs under one subset, and notes of each pair."""
    num_rows = tile.pairs.num_rows
    mine = read_row(tile, bits, scratch, KIND)
    real = tile.classes < tile.num_classes
    clean = clean_rows(mine.z, real, tile.rows < num_rows, KIND, PRECISE)
    if GRAD and KIND == JSD:
        note_clean_row(tile, clean, scratch)
    total, seen, values, due, u_sum, v_sum = own_pairs(
        tile, mine, clean, scratch, s, bits, options, KIND, MASKED, GRAD, PRECISE, BLOCK_K
    )
    any_kept = tl.max(seen, 0) != 0
    value = tl.sum(values, 0)
    if GRAD:
        v, lacking = finish_rows(tl.sum(v_sum, 0)[None, :], clean, KIND, PRECISE)
        value += tl.where(tl.sum(due, 0) > 0.0, tl.sum(lacking, 0), 0.0)
        at = (2 * s * num_rows + tile.rows)[:, None] * tile.num_classes + tile.classes[None, :]
        tl.store(scratch.sums + at, tl.sum(u_sum, 0)[None, :], mask=tile.inside)
        at += num_rows * tile.num_classes
        tl.store(scratch.sums + at, tl.where(any_kept, v, 0.0), mask=tile.inside)
    at_row = s * num_rows + tile.rows
    tl.store(scratch.row_values + at_row, tl.where(any_kept, value, 0.0))
    tl.store(scratch.weights + at_row, tl.sum(total, 0))


@triton.jit
def _small_own_side_kernel(
    x_ptr,  # [M, N, C]
    bias_ptr,  # [C] or None
    donors_ptr,  # [1 or M, K, N], [1 or M, K] or None
    order_ptr,  # [N] or None
    labels_ptr,  # [N] or None
    present_ptr,  # [N, M] or None
    weight_ptr,  # [N] or None
    upstream_ptr,  # [S] or None: return at once if all are equal
    safe_ptr,  # as donors_ptr, to fill
    inverse_ptr,  # [lines, N] or None, of the table, or of the order; to fill
    scratch_ptr,
    num_modalities,
    num_rows,
    num_permutations,
    num_classes,
    num_shifts,
    SUBSETS: tl.constexpr,
    NUM_SUBSETS: tl.constexpr,
    KIND: tl.constexpr,
    SCHEME: tl.constexpr,
    OWN_DONORS: tl.constexpr,
    MASKED: tl.constexpr,
    EXCLUDE: tl.constexpr,
    GRAD: tl.constexpr,
    PRECISE: tl.constexpr,
    ALIGN: tl.constexpr,  # a divisor of the number of classes
    ROWS: tl.constexpr,  # no fewer than there are
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    num_classes = num_classes // ALIGN * ALIGN  # tells the compiler how far loads can be joined
    if upstream_ptr is not None:  # noqa: SIM102 (a kernel evaluates both sides of `and`)
        if all_equal(upstream_ptr, NUM_SUBSETS):
            return
    pairs = Pairs(
        donors_ptr, labels_ptr, present_ptr, weight_ptr, order_ptr,
        num_modalities, num_rows, num_permutations,
    )  # fmt: skip
    scratch = scratch_at(
        scratch_ptr, NUM_SUBSETS, num_modalities, num_rows, num_permutations, num_classes
    )
    program = tl.program_id(0)
    s = program // num_rows
    if s < NUM_SUBSETS:
        row = tl.full([1], 0, tl.int64) + program % num_rows
        classes = tl.arange(0, BLOCK_C)
        real = classes < num_classes
        own_row(
            Tile(x_ptr, bias_ptr, pairs, num_classes, row, classes, real[None, :]), scratch,
            s, subset_bits(s, SUBSETS, NUM_SUBSETS), Options(SCHEME, OWN_DONORS, False, EXCLUDE),
            KIND, MASKED, GRAD, PRECISE, BLOCK_K,
        )  # fmt: skip
    elif inverse_ptr is not None:
        line = program - NUM_SUBSETS * num_rows
        if SCHEME == SHIFTS:
            check_line(
                line, order_ptr, None, inverse_ptr, donors_ptr, safe_ptr, scratch.poison,
                num_rows, num_shifts, ROWS,
            )  # fmt: skip
        else:
            check_line(
                line, donors_ptr, safe_ptr, inverse_ptr, None, None, scratch.poison,
                num_rows, num_shifts, ROWS,
            )  # fmt: skip
