"""The donor side of permuted_divergence: A_m[j] += u for m in S (spec: L_MIPD, Eq. 12-13).

A tile of donors runs through its receivers, so that no two programs add to one address. With the
notes that the own side left of each pair no sum over classes is needed, and a row can be cut
anywhere.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mcr_fast.kernels.divergence import Clean, gradient_of_pair, in_log2, in_nats
from mcr_fast.kernels.math import LOG2E
from mcr_fast.kernels.pairs.donors import Options, Pairs, pair_weight, receivers_of, subset_bits
from mcr_fast.kernels.pairs.own_side import Notes
from mcr_fast.kernels.pairs.rows import (
    Subset,
    Tile,
    load_members,
    load_rest,
    load_rows,
    subset_of,
)
from mcr_fast.kernels.scale import all_equal


class Received(NamedTuple):
    """What the perturbed logits of the receivers are read from."""

    tile: Tile
    subset: Subset
    receivers: Any  # [BLOCK_R]
    there: Any  # [BLOCK_R, BLOCK_C], the members' sum at the donors
    step: Any  # of that from the receivers' own, in log2 units
    lse_ptr: Any


@triton.jit
def read_received(pair, CAREFUL: tl.constexpr):
    """READ of `gradient_of_pair`."""
    tile = pair.tile
    w = LOG2E * (pair.there + load_rest(tile, pair.subset.bits, pair.receivers))
    if CAREFUL:
        inside = tile.rows < tile.pairs.num_rows
        w -= tl.load(pair.lse_ptr + pair.receivers, mask=inside, other=0.0)[:, None]
    return pair.step, w, True


@triton.jit
def load_pair(notes, tile, receivers, k, KIND: tl.constexpr):
    """The receivers as clean rows, and shift and KL of their pairs: as far as KIND has notes."""
    inside = tile.rows < tile.pairs.num_rows
    nothing = tl.zeros(receivers.shape, tl.float32)
    if notes.stats_ptr is None:
        z = in_log2(load_rest(tile, 0, receivers), KIND)
        return Clean(z, z, nothing, inside), nothing, nothing
    else:
        at = 2 * ((tl.full((), 0, tl.int64) + k) * tile.pairs.num_rows + receivers)
        shift = tl.load(notes.stats_ptr + at, mask=inside, other=0.0)
        kl = tl.load(notes.stats_ptr + at + 1, mask=inside, other=0.0)
        at = receivers[:, None] * tile.num_classes + tile.classes[None, :]
        p = tl.load(notes.p_ptr + at, mask=tile.inside, other=0.0)
        normal = tl.load(notes.normal_ptr + receivers, mask=inside, other=1) != 0
        return Clean(p, p, nothing, normal), shift, kl


@triton.jit
def donor_pair(
    tile,
    subset,
    notes,
    receivers,
    mine,  # A_m of the donors
    k,  # a permutation, or [BLOCK_R] of them
    options,
    KIND: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """u of each donor's pair."""
    inside = tile.rows < tile.pairs.num_rows
    there = mine
    if not options.SINGLE:
        there = load_members(tile, subset, receivers, k, options, True)
    step = in_log2(there - load_members(tile, subset, receivers, k, options, False), KIND)
    clean, shift, kl = load_pair(notes, tile, receivers, k, KIND)
    return gradient_of_pair(
        step, clean, shift, kl, inside, read_received,
        Received(tile, subset, receivers, there, step, notes.lse_ptr), KIND, PRECISE,
    )  # fmt: skip


@triton.jit
def donor_subset(
    tile,
    subset,
    notes,
    inverse_ptr,
    m,
    mine,  # A_m of the donors
    first,
    last,
    options,
    KIND: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """Sum of u over permutations first..last, without the subset's factor."""
    u_sum = tl.zeros(mine.shape, tl.float32)
    for k in range(first, last):
        receivers = receivers_of(tile.rows, m, k, tile.pairs, inverse_ptr, options)
        u = donor_pair(tile, subset, notes, receivers, mine, k, options, KIND, PRECISE)
        if MASKED:
            weight = pair_weight(receivers, subset.bits, k, tile.pairs, options)
            u = tl.where((weight != 0.0)[:, None], weight[:, None] * u, 0.0)
        u_sum += u
    return u_sum


@triton.jit
def _donor_side_kernel(
    x_ptr,  # [M, N, C]
    bias_ptr,  # [C] or None
    donors_ptr,  # [1 or M, K, N], [1 or M, K] or None
    inverse_ptr,  # the inverse of a table; otherwise as donors_ptr
    order_ptr,  # [N] or None: where the rows of the gradient stand
    labels_ptr,  # [N] or None
    present_ptr,  # [N, M] or None
    weight_ptr,  # [N] or None
    factors_ptr,  # [S]
    upstream_ptr,  # [S] or None: return at once if all are equal
    stats_ptr,  # [S, K, N, 2] or None, with the next three: `Notes`
    p_ptr,  # [N, C]
    lse_ptr,  # [N]
    normal_ptr,  # [N]
    grad_ptr,  # [parts, M, N, C], added to
    num_modalities,
    num_rows,
    num_permutations,
    num_classes,
    part_permutations,
    class_blocks,
    SUBSETS: tl.constexpr,
    NUM_SUBSETS: tl.constexpr,
    KIND: tl.constexpr,
    SCHEME: tl.constexpr,
    OWN_DONORS: tl.constexpr,
    SINGLE: tl.constexpr,
    MASKED: tl.constexpr,
    EXCLUDE: tl.constexpr,
    PRECISE: tl.constexpr,
    ALIGN: tl.constexpr,  # a divisor of the number of classes
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    num_classes = num_classes // ALIGN * ALIGN  # tells the compiler how far loads can be joined
    if upstream_ptr is not None:  # noqa: SIM102 (a kernel evaluates both sides of `and`)
        if all_equal(upstream_ptr, NUM_SUBSETS):
            return
    m = tl.program_id(1)
    part = tl.program_id(2)
    block = tl.program_id(0) // class_blocks
    rows = block.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    classes = tl.program_id(0) % class_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = rows < num_rows
    pairs = Pairs(
        donors_ptr, labels_ptr, present_ptr, weight_ptr, order_ptr,
        num_modalities, num_rows, num_permutations,
    )  # fmt: skip
    within = inside[:, None] & (classes < num_classes)[None, :]
    tile = Tile(x_ptr, bias_ptr, pairs, num_classes, rows, classes, within)
    first = part * part_permutations
    last = tl.minimum(first + part_permutations, num_permutations)
    mine = load_rows(tile, m, rows)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for s in range(NUM_SUBSETS):
        bits = subset_bits(s, SUBSETS, NUM_SUBSETS)
        subset = subset_of(bits, num_modalities)
        if (bits >> m) & 1:
            stats = stats_ptr
            if stats_ptr is not None:
                stats += (tl.full((), 2, tl.int64) * s) * num_permutations * num_rows
            notes = Notes(stats, p_ptr, lse_ptr, normal_ptr)
            u_sum = donor_subset(
                tile, subset, notes, inverse_ptr, m, mine, first, last,
                Options(SCHEME, OWN_DONORS, SINGLE, EXCLUDE), KIND, MASKED, PRECISE,
            )  # fmt: skip
            total += u_sum * tl.load(factors_ptr + s)
    total = in_nats(total, KIND)
    out = rows
    if order_ptr is not None:
        out = tl.load(order_ptr + rows, mask=inside, other=0)
    plane = part.to(tl.int64) * num_modalities + m
    at = (plane * num_rows + out)[:, None] * num_classes + classes[None, :]
    tl.store(grad_ptr + at, tl.load(grad_ptr + at, mask=within, other=0.0) + total, mask=within)
