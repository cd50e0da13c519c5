"""The donor side of a small batch, and whatever is left to do: one launch.

A program has one donor of one modality, and many permutations of it at once. It adds what the
donor got as a row of its own, so that it writes every number of the gradient once. Programs of one
modality more than there are add up the bias's gradient and the values.
"""

import triton
import triton.language as tl

from mcr_fast.kernels.divergence import JSD, in_nats
from mcr_fast.kernels.pairs.donor_side import donor_pair
from mcr_fast.kernels.pairs.donors import (
    Options,
    Pairs,
    in_batch,
    receivers_of,
    subset_bits,
)
from mcr_fast.kernels.pairs.own_side import Notes, head_factors, own_factors
from mcr_fast.kernels.pairs.rows import Tile, load_rows, subset_of
from mcr_fast.kernels.pairs.scratch import scratch_at
from mcr_fast.kernels.scale import all_equal


@triton.jit
def poison_of(scratch, lines, BLOCK: tl.constexpr):
    """NaN if any line is no permutation, else 0."""
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, lines, BLOCK):
        at = first + tl.arange(0, BLOCK)
        total += tl.load(scratch.poison + at, mask=at < lines, other=0.0)
    return tl.sum(total, 0)


@triton.jit
def factor_of(scratch, s, num_rows, upstream_ptr, share, MASKED: tl.constexpr, ROWS: tl.constexpr):
    """Upstream gradient (None: 1) times the share, of a masked subset over its pairs' weights."""
    factor = share
    if MASKED:
        row = tl.arange(0, ROWS)
        weights = tl.load(scratch.weights + s * num_rows + row, mask=row < num_rows, other=0.0)
        total = tl.sum(weights.to(tl.float64), 0)
        factor = tl.where(total == 0, 0.0, share / total).to(tl.float32)
    if upstream_ptr is not None:
        factor *= tl.load(upstream_ptr + s).to(tl.float32)
    return factor


@triton.jit
def received(
    tile,  # the donor
    scratch,
    inverse_ptr,
    s,
    subset,
    m,
    options,
    KIND: tl.constexpr,
    MASKED: tl.constexpr,
    PRECISE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):  # [BLOCK_C]
    """Sum of u over the pairs in which it is the donor, without the subset's factor."""
    pairs, classes = tile.pairs, tile.classes
    num_rows, num_permutations = pairs.num_rows, pairs.num_permutations
    stats, p, lse, normal = None, None, None, None
    if KIND == JSD:
        stats = scratch.stats + 2 * s * num_permutations * num_rows
        p, lse, normal = scratch.p, scratch.lse, scratch.normal
    u_sum = tl.zeros([BLOCK_K, classes.shape[0]], tl.float32)
    for first in range(0, num_permutations, BLOCK_K):
        lane = first + tl.arange(0, BLOCK_K)
        given = lane < num_permutations
        k = tl.minimum(lane, num_permutations - 1)
        rows = tl.where(given, tile.rows, num_rows)  # beyond the permutations: beyond the batch
        lanes = Tile(
            tile.x_ptr, tile.bias_ptr, pairs, tile.num_classes, rows, classes,
            given[:, None] & tile.inside,
        )  # fmt: skip
        receivers = receivers_of(rows, m, k, pairs, inverse_ptr, options)
        u = donor_pair(
            lanes, subset, Notes(stats, p, lse, normal), receivers, load_rows(lanes, m, rows), k,
            options, KIND, PRECISE,
        )  # fmt: skip
        weight = given.to(tl.float32)
        if MASKED:
            at = (s * num_permutations + k) * num_rows + receivers
            weight = tl.load(scratch.pair_weights + at, mask=given, other=0.0)
        u_sum += tl.where((weight != 0.0)[:, None], weight[:, None] * u, 0.0)
    return tl.sum(u_sum, 0)


@triton.jit
def own_sums(scratch, s, rows, classes, num_rows, num_classes):  # [R, BLOCK_C] twice
    """u and v of rows over their own pairs."""
    at = (2 * s * num_rows + rows)[:, None] * num_classes + classes[None, :]
    inside = (rows < num_rows)[:, None] & (classes < num_classes)[None, :]
    u = tl.load(scratch.sums + at, mask=inside, other=0.0)
    return u, tl.load(scratch.sums + at + num_rows * num_classes, mask=inside, other=0.0)


@triton.jit
def store_values(
    scratch,
    values_ptr,
    num_rows,
    share,
    poison,
    NUM_SUBSETS: tl.constexpr,
    KIND: tl.constexpr,
    MASKED: tl.constexpr,
    ROWS: tl.constexpr,
):
    """The divergence of every subset."""
    row = tl.arange(0, ROWS)
    for s in range(NUM_SUBSETS):
        values = tl.load(scratch.row_values + s * num_rows + row, mask=row < num_rows, other=0.0)
        factor = factor_of(scratch, s, num_rows, None, share, MASKED, ROWS)
        tl.store(values_ptr + s, in_nats(tl.sum(values, 0) * factor, KIND) + poison)


@triton.jit
def scale_row(unit_ptr, out_ptr, at, mask, factor):
    """out = factor * unit."""
    unit = tl.load(unit_ptr + at, mask=mask, other=0.0)
    tl.store(out_ptr + at, (factor * unit).to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _small_donor_side_kernel(
    bias_ptr,  # [C] or None
    donors_ptr,  # [1 or M, K, N], [1 or M, K] or None, fit to read by
    order_ptr,  # [N] or None
    inverse_ptr,  # [1 or M, K, N] of a table, or as donors_ptr
    scratch_ptr,
    upstream_ptr,  # [S] or None: where all are equal, the next two are scaled and that is all
    unit_ptr,  # [M, N, C] or None
    unit_bias_ptr,  # [C] or None
    values_ptr,  # [S], to fill, or None
    grad_ptr,  # [M, N, C], to fill; None, with the next one, without gradient
    grad_bias_ptr,  # [C], to fill, with 0 if there is no bias
    num_modalities,
    num_rows,
    num_permutations,
    num_classes,
    lines,
    share,  # 1 over the terms of a mean, and over the pairs where all of them weigh 1
    SUBSETS: tl.constexpr,
    NUM_SUBSETS: tl.constexpr,
    KIND: tl.constexpr,
    SCHEME: tl.constexpr,
    OWN_DONORS: tl.constexpr,
    SINGLE: tl.constexpr,
    MASKED: tl.constexpr,
    CLEAN_PATH: tl.constexpr,
    OUTSIDER: tl.constexpr,
    PRECISE: tl.constexpr,
    ALIGN: tl.constexpr,  # a divisor of the number of classes
    ROWS: tl.constexpr,  # no fewer than there are
    BLOCK_K: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    num_classes = num_classes // ALIGN * ALIGN  # tells the compiler how far loads can be joined
    m = tl.program_id(1)
    donor = tl.program_id(0) % num_rows
    classes = tl.program_id(0) // num_rows * BLOCK_C + tl.arange(0, BLOCK_C)
    real = classes < num_classes
    if upstream_ptr is not None:  # noqa: SIM102 (a kernel evaluates both sides of `and`)
        if all_equal(upstream_ptr, NUM_SUBSETS):
            factor = tl.load(upstream_ptr).to(tl.float32)
            if m < num_modalities:
                at = (m * num_rows + donor) * num_classes + classes
                scale_row(unit_ptr, grad_ptr, at, real, factor)
            elif donor == 0:
                scale_row(unit_bias_ptr, grad_bias_ptr, classes, real, factor)
            return
    pairs = Pairs(donors_ptr, None, None, None, None, num_modalities, num_rows, num_permutations)
    scratch = scratch_at(
        scratch_ptr, NUM_SUBSETS, num_modalities, num_rows, num_permutations, num_classes
    )
    poison = poison_of(scratch, lines, ROWS)
    if values_ptr is not None:  # noqa: SIM102 (a kernel evaluates both sides of `and`)
        if (tl.program_id(0) == 0) & (m == tl.num_programs(1) - 1):
            store_values(
                scratch, values_ptr, num_rows, share, poison, NUM_SUBSETS, KIND, MASKED, ROWS
            )
    if grad_ptr is not None:
        if m < num_modalities:
            total = tl.zeros([BLOCK_C], tl.float32)
            one = tl.full([1], 0, tl.int64) + donor
            bias = None if bias_ptr is None else scratch.bias
            tile = Tile(scratch.rows, bias, pairs, num_classes, one, classes, real[None, :])
            for s in range(NUM_SUBSETS):
                subset = subset_of(subset_bits(s, SUBSETS, NUM_SUBSETS), num_modalities)
                u, v = own_sums(scratch, s, one, classes, num_rows, num_classes)
                _, clean_head = head_factors(subset, num_modalities, CLEAN_PATH, OUTSIDER)
                outside, clean = own_factors(subset, m, clean_head, CLEAN_PATH, OUTSIDER)
                of_subset = tl.sum(outside * u + clean * v, 0)
                if (subset.bits >> m) & 1:
                    of_subset += received(
                        tile, scratch, inverse_ptr, s, subset, m,
                        Options(SCHEME, OWN_DONORS, SINGLE, 0), KIND, MASKED, PRECISE, BLOCK_K,
                    )  # fmt: skip
                total += of_subset * factor_of(
                    scratch, s, num_rows, upstream_ptr, share, MASKED, ROWS
                )
            row = donor
            if order_ptr is not None:
                # every row is written, also where the order is no permutation
                row = tl.where(poison == 0.0, in_batch(tl.load(order_ptr + donor), num_rows), donor)
            at = (m * num_rows + row) * num_classes + classes
            total = in_nats(total, KIND) + poison
            tl.store(grad_ptr + at, total.to(grad_ptr.dtype.element_ty), mask=real)
        elif donor == 0:
            total = tl.zeros([BLOCK_C], tl.float32)
            if bias_ptr is not None:
                for s in range(NUM_SUBSETS):
                    subset = subset_of(subset_bits(s, SUBSETS, NUM_SUBSETS), num_modalities)
                    head, clean_head = head_factors(subset, num_modalities, CLEAN_PATH, OUTSIDER)
                    both = tl.zeros([BLOCK_K, BLOCK_C], tl.float32)
                    for first in range(0, num_rows, BLOCK_K):
                        rows = first + tl.arange(0, BLOCK_K)
                        u, v = own_sums(scratch, s, rows, classes, num_rows, num_classes)
                        both += head * u + clean_head * v
                    total += tl.sum(both, 0) * factor_of(
                        scratch, s, num_rows, upstream_ptr, share, MASKED, ROWS
                    )
                total = in_nats(total, KIND) + poison
            tl.store(grad_bias_ptr + classes, total.to(grad_bias_ptr.dtype.element_ty), mask=real)
