"""The donors' side of permuted_divergence: A_m[j] += u for m in S (spec: L_MIPD, Eq. 12-13).

A tile of donors runs through the rows that they replace, by the inverse permutations, so that no
two programs add to one address. With the two numbers that the rows' side left for each pair no
sum over classes is needed, and a row can be cut anywhere.
"""

import triton
import triton.language as tl

from mcr_fast.kernels.divergence import (
    BINARY_JSD,
    JSD,
    NEAR,
    SQUARED_ERROR,
    binary_terms,
    log_ratios,
    logistic,
)
from mcr_fast.kernels.math import HALF_LN2, LOG2E, exp2, log2
from mcr_fast.kernels.pairs.donors import donors_of, pair_weight
from mcr_fast.kernels.pairs.rows import all_equal, load_members, load_rest, load_rows, members_of


@triton.jit
def jsd_gradient(
    x_ptr,
    bias_ptr,
    stats_ptr,  # [K, N, 2] of the subset
    clean,  # p [N, C], lse [N], normal [N]
    subset,
    there,  # the members' sum at the donors
    difference,  # of that from the rows'
    i,
    k,
    inside,
    classes,
    mask,
    sizes,
    PRECISE: tl.constexpr,
):
    """u of the rows i under permutation k, 2 / ln 2 times."""
    p_ptr, lse_ptr, normal_ptr = clean
    pair = 2 * ((tl.full((), 0, tl.int64) + k) * sizes[1] + i)
    shift = tl.load(stats_ptr + pair, mask=inside, other=0.0)[:, None]
    kl = tl.load(stats_ptr + pair + 1, mask=inside, other=0.0)
    p = tl.load(p_ptr + i[:, None] * sizes[3] + classes[None, :], mask=mask, other=0.0)
    d = difference * LOG2E - shift
    ratio = exp2(d, PRECISE)
    g = log2(tl.fma(ratio, 0.5, 0.5), PRECISE)
    u = p * ratio * (d - kl[:, None] - g)
    plain = (tl.load(normal_ptr + i, mask=inside, other=1) != 0) & (kl > NEAR)
    if tl.min((plain | ~inside).to(tl.int32), 0) == 0:
        w = LOG2E * (there + load_rest(x_ptr, bias_ptr, subset, i, classes, mask, sizes))
        lse = tl.load(lse_ptr + i, mask=inside, other=0.0)
        log2_qm, log2_pm = log_ratios(d, PRECISE)
        q = exp2(w - lse[:, None] - shift, PRECISE) + 0.0 * difference
        u = q * (log2_qm - kl[:, None])
    return u


@triton.jit
def donor_subset(
    x_ptr,
    bias_ptr,
    masks,
    inverse_ptr,
    stats_ptr,  # [K, N, 2] of this subset
    clean,  # p [N, C], lse [N], normal [N]
    m,
    subset,
    member,
    first,
    last,
    mine,  # A_m of the donors
    rows,
    classes,
    sizes,
    KIND: tl.constexpr,
    SCHEME: tl.constexpr,
    OWN_DONORS: tl.constexpr,
    SINGLE: tl.constexpr,
    MASKED: tl.constexpr,
    EXCLUDE: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """Sum of u over permutations first..last, without the subset's factor."""
    inside = rows < sizes[1]
    mask = inside[:, None] & (classes < sizes[3])[None, :]
    u_sum = tl.zeros(mine.shape, tl.float32)
    for k in range(first, last):
        i = donors_of(inverse_ptr, rows, m, k, sizes, SCHEME, OWN_DONORS, True)
        there = mine
        if not SINGLE:
            there = load_members(
                x_ptr, masks[0], subset, member, i, k, classes, mask, sizes,
                True, SCHEME, OWN_DONORS, SINGLE,
            )  # fmt: skip
        difference = there - load_members(
            x_ptr, masks[0], subset, member, i, k, classes, mask, sizes,
            False, SCHEME, OWN_DONORS, SINGLE,
        )  # fmt: skip
        if KIND == JSD:
            u = jsd_gradient(
                x_ptr, bias_ptr, stats_ptr, clean, subset, there, difference, i, k, inside,
                classes, mask, sizes, PRECISE,
            )  # fmt: skip
        elif KIND == BINARY_JSD:
            z = LOG2E * load_rest(x_ptr, bias_ptr, 0, i, classes, mask, sizes)
            w = LOG2E * (there + load_rest(x_ptr, bias_ptr, subset, i, classes, mask, sizes))
            on, off, excess = logistic(z, PRECISE)
            terms, u, to_clean = binary_terms(difference * LOG2E, on, off, excess, z, w, PRECISE)
        else:
            u = 2.0 * (difference + 0.0 * difference)
        if MASKED:
            weight = pair_weight(i, subset, k, masks, sizes, SCHEME, OWN_DONORS, EXCLUDE)
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
    subsets_ptr,  # [S]
    factors_ptr,  # [S]
    upstream_ptr,  # [S] or None: return at once if all are equal
    stats_ptr,  # [S, K, N, 2]
    p_ptr,  # [N, C]
    lse_ptr,  # [N]
    normal_ptr,  # [N]
    grad_ptr,  # [parts, M, N, C], added to
    num_modalities,
    num_subsets,
    num_rows,
    num_permutations,
    num_classes,
    part_permutations,
    class_blocks,
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
        if all_equal(upstream_ptr, num_subsets):
            return
    m = tl.program_id(1)
    part = tl.program_id(2)
    block = tl.program_id(0) // class_blocks
    rows = block.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    classes = tl.program_id(0) % class_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = rows < num_rows
    mask = inside[:, None] & (classes < num_classes)[None, :]
    masks = (donors_ptr, labels_ptr, present_ptr, weight_ptr)
    sizes = (num_modalities, num_rows, num_permutations, num_classes)
    first = part * part_permutations
    last = tl.minimum(first + part_permutations, num_permutations)
    mine = load_rows(x_ptr, m, rows, classes, mask, sizes)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for s in range(num_subsets):
        subset = tl.load(subsets_ptr + s)
        size, member = members_of(subset, num_modalities)
        if (subset >> m) & 1:
            stats = stats_ptr
            if KIND == JSD:
                stats += (tl.full((), 2, tl.int64) * s) * num_permutations * num_rows
            u_sum = donor_subset(
                x_ptr, bias_ptr, masks, inverse_ptr, stats, (p_ptr, lse_ptr, normal_ptr), m,
                subset, member, first, last, mine, rows, classes, sizes, KIND, SCHEME, OWN_DONORS,
                SINGLE, MASKED, EXCLUDE, PRECISE,
            )  # fmt: skip
            total += u_sum * tl.load(factors_ptr + s)
    total *= 1.0 if KIND == SQUARED_ERROR else HALF_LN2
    out = rows
    if order_ptr is not None:
        out = tl.load(order_ptr + rows, mask=inside, other=0)
    plane = part.to(tl.int64) * num_modalities + m
    at = (plane * num_rows + out)[:, None] * num_classes + classes[None, :]
    tl.store(grad_ptr + at, tl.load(grad_ptr + at, mask=mask, other=0.0) + total, mask=mask)
