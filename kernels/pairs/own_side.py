"""The own side of permuted_divergence: values, a row's gradient from its pairs, notes of each pair.

A tile of rows stays in registers while it runs through its donors. With u = dD_S/dw and
v = dD_S/dz:   A_m[i] += k u for m not in S,   A_m[i] += c(S, m) v   (spec: L_MIPD, Eq. 12-13).
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mcr_fast.kernels.divergence import (
    Clean,
    clean_rows,
    divergence_of_pair,
    finish_rows,
    in_log2,
    in_nats,
)
from mcr_fast.kernels.math import LOG2E
from mcr_fast.kernels.pairs.donors import Options, Pairs, pair_weight, subset_bits
from mcr_fast.kernels.pairs.rows import Subset, Tile, load_members, load_rest, subset_of
from mcr_fast.kernels.scale import all_equal

SHARED = tl.constexpr(0)
ROUTED = tl.constexpr(1)
DETACHED = tl.constexpr(2)
CLEAN_PATHS = {"shared": 0, "routed": 1, "detached": 2}
OUTSIDERS = {"greedy": -1, "independent": 0, "collaborative": 1}


class Notes(NamedTuple):
    """What the donor side reads of a divergence that has them (`STORED`); None for the others."""

    stats_ptr: Any  # [K, N, 2] of the subset: shift and KL of each pair
    p_ptr: Any  # [N, C]
    lse_ptr: Any  # [N]
    normal_ptr: Any  # [N]


class Perturbed(NamedTuple):
    """What the perturbed logits of a pair are read from."""

    tile: Tile
    subset: Subset
    k: Any
    clean: Clean
    own: Any  # [BLOCK_R, BLOCK_C], the members' sum at the rows
    there: Any  # the same at their donors
    options: Options


@triton.jit
def read_perturbed(pair, CAREFUL: tl.constexpr):
    """READ of `divergence_of_pair`."""
    tile = pair.tile
    there = pair.there
    if CAREFUL:
        # once more, to spare the registers
        there = load_members(tile, pair.subset, tile.rows, pair.k, pair.options, True)
    w = (there + load_rest(tile, pair.subset.bits, tile.rows)) * LOG2E
    if CAREFUL:
        real = tile.classes < tile.num_classes
        w = tl.where(real[None, :], w - pair.clean.lse[:, None], -float("inf"))
    return (there - pair.own) * LOG2E, w, pair.clean.normal


@triton.jit
def note_clean_rows(notes, clean, tile):
    """Store what the donor side reads of the clean rows; every part and subset stores the same."""
    inside = tile.rows < tile.pairs.num_rows
    at = tile.rows[:, None] * tile.num_classes + tile.classes[None, :]
    tl.store(notes.p_ptr + at, clean.p, mask=tile.inside)
    tl.store(notes.lse_ptr + tile.rows, clean.lse, mask=inside)
    tl.store(notes.normal_ptr + tile.rows, clean.normal.to(tl.int8), mask=inside)


@triton.jit
def own_subset(
    tile,
    subset,
    notes,
    first,
    last,
    options,
    KIND: tl.constexpr,
    MASKED: tl.constexpr,
    GRAD: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """Sum over permutations first..last of value, u and v, all without the subset's factor."""
    rows, pairs = tile.rows, tile.pairs
    inside = rows < pairs.num_rows
    real = tile.classes < tile.num_classes
    own = load_members(tile, subset, rows, 0, options, False)
    clean = clean_rows(load_rest(tile, 0, rows), real, inside, KIND, PRECISE)
    if notes.stats_ptr is not None:
        note_clean_rows(notes, clean, tile)
    v_sum = tl.zeros(own.shape, tl.float32)
    u_sum = tl.zeros(own.shape, tl.float32)
    value = tl.zeros(rows.shape, tl.float32)
    seen = (rows < 0) if MASKED else inside
    due = tl.zeros(rows.shape, tl.float32)
    for k in range(first, last):
        weight = inside.to(tl.float32)
        if MASKED:
            weight = pair_weight(rows, subset.bits, k, pairs, options)
        kept = weight != 0.0
        there = load_members(tile, subset, rows, k, options, True)
        pair = divergence_of_pair(
            in_log2(there - own, KIND), clean, kept, real, read_perturbed,
            Perturbed(tile, subset, k, clean, own, there, options), KIND, not GRAD, PRECISE,
        )  # fmt: skip
        if notes.stats_ptr is not None:
            at = 2 * ((tl.full((), 0, tl.int64) + k) * pairs.num_rows + rows)
            tl.store(notes.stats_ptr + at, pair.shift, mask=inside)
            tl.store(notes.stats_ptr + at + 1, pair.kl, mask=inside)
        row_value, u, v = pair.value, pair.to_perturbed, pair.to_clean
        if MASKED:
            u = tl.where(kept[:, None], weight[:, None] * u, 0.0)
            v = tl.where(kept[:, None], weight[:, None] * v, 0.0)
            row_value = tl.where(kept, weight * row_value, 0.0)
            seen = seen | kept
        value += row_value
        if GRAD:
            due += pair.due
            u_sum += u
            v_sum += v
    if GRAD:
        v_sum, lacking = finish_rows(v_sum, clean, KIND, PRECISE)
        value += tl.where(due > 0.0, lacking, 0.0)
    return tl.where(seen, value, 0.0), u_sum, tl.where(seen[:, None], v_sum, 0.0)


@triton.jit
def head_factors(subset, num_modalities, CLEAN_PATH: tl.constexpr, OUTSIDER: tl.constexpr):
    """What the bias gets of u and of v; the latter is the shared clean path's factor too."""
    if OUTSIDER > 0:
        head = subset.size * 0 + 1
    else:
        head = subset.size + OUTSIDER * (num_modalities - subset.size)
    return head, head * (CLEAN_PATH != DETACHED)


@triton.jit
def own_factors(subset, m, clean_head, CLEAN_PATH: tl.constexpr, OUTSIDER: tl.constexpr):
    """What modality m gets of u and of v where it is the row's own."""
    member = (subset.bits >> m) & 1
    outside = (1 - member) * OUTSIDER
    clean = clean_head
    if CLEAN_PATH == ROUTED:
        clean = member + outside
    return outside, clean


@triton.jit
def store_own_side(
    grad_ptr,  # [M, N, C] of this part
    out,  # the rows that the gradient goes to
    tile,
    subset,
    add,  # to what other subsets left there
    u_sum,
    v,
    CLEAN_PATH: tl.constexpr,
    OUTSIDER: tl.constexpr,
):
    """Routes one subset's u and v to all modalities, and returns what the bias gets."""
    head, clean_head = head_factors(subset, tile.pairs.num_modalities, CLEAN_PATH, OUTSIDER)
    # A number that another subset left may come back to another thread than the one that stored it:
    # with 16-bit inputs the loads and the stores have layouts of their own.
    tl.debug_barrier()
    for m in range(tile.pairs.num_modalities):
        outside, clean = own_factors(subset, m, clean_head, CLEAN_PATH, OUTSIDER)
        at = (m * tile.pairs.num_rows + out)[:, None] * tile.num_classes + tile.classes[None, :]
        before = tl.load(grad_ptr + at, mask=tile.inside & add, other=0.0)
        tl.store(grad_ptr + at, before + outside * u_sum + clean * v, mask=tile.inside)
    return head * u_sum + clean_head * v


@triton.jit
def _own_side_kernel(
    x_ptr,  # [M, N, C]
    bias_ptr,  # [C] or None
    donors_ptr,  # [1 or M, K, N], [1 or M, K] or None
    order_ptr,  # [N] or None: where the rows of the gradient stand
    labels_ptr,  # [N] or None
    present_ptr,  # [N, M] or None
    weight_ptr,  # [N] or None
    factors_ptr,  # [S] upstream gradient over the weights' sum
    upstream_ptr,  # [S] or None: return at once if all are equal
    values_ptr,  # [S, programs]
    stats_ptr,  # [S, K, N, 2] or None, with the next three: `Notes`
    p_ptr,  # [N, C]
    lse_ptr,  # [N]
    normal_ptr,  # [N]
    grad_ptr,  # [parts, M, N, C]
    shared_ptr,  # [programs, C] or None: the bias's
    num_modalities,
    num_rows,
    num_permutations,
    num_classes,
    part_permutations,
    SUBSETS: tl.constexpr,
    NUM_SUBSETS: tl.constexpr,
    KIND: tl.constexpr,
    SCHEME: tl.constexpr,
    OWN_DONORS: tl.constexpr,
    SINGLE: tl.constexpr,
    MASKED: tl.constexpr,
    EXCLUDE: tl.constexpr,
    CLEAN_PATH: tl.constexpr,
    OUTSIDER: tl.constexpr,
    GRAD: tl.constexpr,
    PRECISE: tl.constexpr,
    ALIGN: tl.constexpr,  # a divisor of the number of classes
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    num_classes = num_classes // ALIGN * ALIGN  # tells the compiler how far loads can be joined
    if upstream_ptr is not None:  # noqa: SIM102 (a kernel evaluates both sides of `and`)
        if all_equal(upstream_ptr, NUM_SUBSETS):
            return
    part = tl.program_id(1).to(tl.int64)
    program = part * tl.num_programs(0) + tl.program_id(0)
    programs = tl.num_programs(0) * tl.num_programs(1)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    classes = tl.arange(0, BLOCK_C)
    inside = (rows < num_rows)[:, None] & (classes < num_classes)[None, :]
    out = rows
    if order_ptr is not None:
        out = tl.load(order_ptr + rows, mask=rows < num_rows, other=0)
    pairs = Pairs(
        donors_ptr, labels_ptr, present_ptr, weight_ptr, order_ptr,
        num_modalities, num_rows, num_permutations,
    )  # fmt: skip
    tile = Tile(x_ptr, bias_ptr, pairs, num_classes, rows, classes, inside)
    first = tl.program_id(1) * part_permutations
    last = tl.minimum(first + part_permutations, num_permutations)
    if GRAD:
        grad_ptr += part * num_modalities * num_rows * num_classes
    shared = tl.zeros([BLOCK_C], tl.float32)
    for s in range(NUM_SUBSETS):
        subset = subset_of(subset_bits(s, SUBSETS, NUM_SUBSETS), num_modalities)
        stats = stats_ptr
        if stats_ptr is not None:
            stats += (tl.full((), 2, tl.int64) * s) * num_permutations * num_rows
        notes = Notes(stats, p_ptr, lse_ptr, normal_ptr)
        value, u_sum, v = own_subset(
            tile, subset, notes, first, last, Options(SCHEME, OWN_DONORS, SINGLE, EXCLUDE),
            KIND, MASKED, GRAD, PRECISE,
        )  # fmt: skip
        factor = in_nats(tl.load(factors_ptr + s), KIND)
        tl.store(values_ptr + s * programs + program, tl.sum(value * factor, 0))
        if GRAD:
            both = store_own_side(
                grad_ptr, out, tile, subset, s > 0, u_sum * factor, v * factor, CLEAN_PATH, OUTSIDER
            )
            shared += tl.sum(tl.where(inside, both, 0.0), 0)
    if shared_ptr is not None:
        tl.store(shared_ptr + program * num_classes + classes, shared, mask=classes < num_classes)
