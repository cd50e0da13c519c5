"""The rows' side of permuted_divergence: value, own side of the gradient, two numbers a pair.

A tile of rows stays in registers while it runs through its donors. With u = dD_S/dw and
v = dD_S/dz:   A_m[i] += k u for m not in S,   A_m[i] += c(S, m) v   (spec: L_MIPD, Eq. 12-13).
"""

import triton
import triton.language as tl

from mcr_fast.kernels.divergence import (
    BINARY_JSD,
    JSD,
    SQUARED_ERROR,
    binary_terms,
    careful_jsd,
    clean_softmax,
    logistic,
    plain_jsd,
)
from mcr_fast.kernels.math import HALF_LN2, LOG2E
from mcr_fast.kernels.pairs.donors import pair_weight
from mcr_fast.kernels.pairs.rows import all_equal, load_members, load_rest, members_of

SHARED = tl.constexpr(0)
ROUTED = tl.constexpr(1)
DETACHED = tl.constexpr(2)
CLEAN_PATHS = {"shared": 0, "routed": 1, "detached": 2}
OUTSIDERS = {"greedy": -1, "independent": 0, "collaborative": 1}


@triton.jit
def jsd_pair(
    x_ptr,
    bias_ptr,
    donors_ptr,
    subset,
    member,
    rows,
    k,
    classes,
    mask,
    sizes,
    own,  # the members' sum at the rows
    p,
    lse,
    normal,
    kept,
    SCHEME: tl.constexpr,
    OWN_DONORS: tl.constexpr,
    SINGLE: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """`plain_jsd` of the rows and their donors, or `careful_jsd` where a kept row needs that."""
    there = load_members(
        x_ptr, donors_ptr, subset, member, rows, k, classes, mask, sizes,
        True, SCHEME, OWN_DONORS, SINGLE,
    )  # fmt: skip
    mass, log, scale, offset, g, kl, shift, in_range, plain = plain_jsd(
        (there - own) * LOG2E, p, PRECISE
    )
    if tl.min(((plain & normal) | ~kept).to(tl.int32), 0) == 0:
        # read again, to spare the registers
        donor = load_members(
            x_ptr, donors_ptr, subset, member, rows, k, classes, mask, sizes,
            True, SCHEME, OWN_DONORS, SINGLE,
        )  # fmt: skip
        w = (donor + load_rest(x_ptr, bias_ptr, subset, rows, classes, mask, sizes)) * LOG2E
        w = tl.where((classes < sizes[3])[None, :], w - lse[:, None], -float("inf"))
        mass, log, scale, offset, g, kl, shift = careful_jsd(
            (donor - own) * LOG2E, p, w, in_range & normal, PRECISE
        )
    return mass, log, scale, offset, g, kl, shift


@triton.jit
def store_own_side(
    grad_ptr,  # [M, N, C] of this part
    out,  # the rows that the gradient goes to
    classes,
    mask,
    sizes,
    subset,
    size,
    add,  # to what other subsets left there
    u_sum,
    v,
    CLEAN_PATH: tl.constexpr,
    OUTSIDER: tl.constexpr,
):
    """Routes one subset's u and v to all modalities, and returns what the bias gets."""
    if OUTSIDER > 0:
        head = size * 0 + 1
    else:
        head = size + OUTSIDER * (sizes[0] - size)
    clean_head = head * (CLEAN_PATH != DETACHED)
    # A number that another subset left may come back to another thread than the one that stored it:
    # with 16-bit inputs the loads and the stores have layouts of their own.
    tl.debug_barrier()
    for m in range(sizes[0]):
        member = (subset >> m) & 1
        outside = (1 - member) * OUTSIDER
        clean = clean_head
        if CLEAN_PATH == ROUTED:
            clean = member + outside
        at = (m * sizes[1] + out)[:, None] * sizes[3] + classes[None, :]
        before = tl.load(grad_ptr + at, mask=mask & add, other=0.0)
        tl.store(grad_ptr + at, before + outside * u_sum + clean * v, mask=mask)
    return head * u_sum + clean_head * v


@triton.jit
def own_subset(
    x_ptr,
    bias_ptr,
    masks,
    stats_ptr,  # [K, N, 2] of this subset
    p_ptr,
    lse_ptr,
    normal_ptr,
    subset,
    member,
    first,
    last,
    rows,
    classes,
    sizes,
    KIND: tl.constexpr,
    SCHEME: tl.constexpr,
    OWN_DONORS: tl.constexpr,
    SINGLE: tl.constexpr,
    MASKED: tl.constexpr,
    EXCLUDE: tl.constexpr,
    GRAD: tl.constexpr,
    PRECISE: tl.constexpr,
):
    """Sum over permutations first..last of value, u and v, all without the subset's factor."""
    inside = rows < sizes[1]
    real = classes < sizes[3]
    mask = inside[:, None] & real[None, :]
    own = load_members(
        x_ptr, masks[0], subset, member, rows, 0, classes, mask, sizes,
        False, SCHEME, OWN_DONORS, SINGLE,
    )  # fmt: skip
    z = load_rest(x_ptr, bias_ptr, 0, rows, classes, mask, sizes)
    lse = tl.zeros(rows.shape, tl.float32)
    normal = inside
    p = z
    if KIND == JSD:
        p, lse, normal = clean_softmax(tl.where(real[None, :], LOG2E * z, -float("inf")), PRECISE)
        if GRAD:
            # every part and subset writes the same numbers
            tl.store(p_ptr + rows[:, None] * sizes[3] + classes[None, :], p, mask=mask)
            tl.store(lse_ptr + rows, lse, mask=inside)
            tl.store(normal_ptr + rows, normal.to(tl.int8), mask=inside)
    if KIND == BINARY_JSD:
        z *= LOG2E
    acc = tl.zeros(z.shape, tl.float32)
    u_sum = tl.zeros(z.shape, tl.float32)
    value = tl.zeros(rows.shape, tl.float32)
    seen = rows < 0
    for k in range(first, last):
        weight = inside.to(tl.float32)
        if MASKED:
            weight = pair_weight(rows, subset, k, masks, sizes, SCHEME, OWN_DONORS, EXCLUDE)
        kept = weight != 0.0
        if KIND == JSD:
            mass, log, scale, offset, g, kl, shift = jsd_pair(
                x_ptr, bias_ptr, masks[0], subset, member, rows, k, classes, mask, sizes,
                own, p, lse, normal, kept, SCHEME, OWN_DONORS, SINGLE, PRECISE,
            )  # fmt: skip
            row_value = kl
            to_donor = mass
            to_clean = -g
            if GRAD:
                pair = 2 * ((tl.full((), 0, tl.int64) + k) * sizes[1] + rows)
                tl.store(stats_ptr + pair, shift, mask=inside)
                tl.store(stats_ptr + pair + 1, kl, mask=inside)
                to_donor = mass * tl.fma(log, scale[:, None], offset[:, None])
            else:
                row_value -= tl.sum(p * g, 1)
        else:
            there = load_members(
                x_ptr, masks[0], subset, member, rows, k, classes, mask, sizes,
                True, SCHEME, OWN_DONORS, SINGLE,
            )  # fmt: skip
            if KIND == BINARY_JSD:
                # made and read again for each pair, to spare the registers
                on, off, excess = logistic(z, PRECISE)
                w = (there + load_rest(x_ptr, bias_ptr, subset, rows, classes, mask, sizes)) * LOG2E
                terms, to_donor, to_clean = binary_terms(
                    (there - own) * LOG2E, on, off, excess, z, w, PRECISE
                )
                row_value = tl.sum(tl.where(real[None, :], terms, 0.0), 1)
            else:
                # 0 * difference: infinite ones are NaN, as they are for the other divergences
                to_donor = 2.0 * ((there - own) + 0.0 * (there - own + z))
                to_clean = -to_donor
                row_value = 0.25 * tl.sum(to_donor * to_donor, 1)
        if MASKED:
            to_donor = tl.where(kept[:, None], weight[:, None] * to_donor, 0.0)
            to_clean = tl.where(kept[:, None], weight[:, None] * to_clean, 0.0)
            row_value = tl.where(kept, weight * row_value, 0.0)
        seen = seen | kept
        value += row_value
        if GRAD:
            u_sum += to_donor
            acc += to_clean
    v = acc
    if GRAD:
        if KIND == JSD:
            acc_kl = tl.sum(p * acc, 1)
            value += acc_kl
            v = p * (acc - acc_kl[:, None])
        elif KIND == BINARY_JSD:
            on, off, excess = logistic(z, PRECISE)
            v = on * off * acc
    # equal rows but for a rounding can sum up to a rounding below 0; NaN stays NaN
    value = tl.where(seen & ~(value <= 0.0), value, 0.0)
    return value, u_sum, tl.where(seen[:, None], v, 0.0)


@triton.jit
def _own_side_kernel(
    x_ptr,  # [M, N, C]
    bias_ptr,  # [C] or None
    donors_ptr,  # [1 or M, K, N], [1 or M, K] or None
    order_ptr,  # [N] or None: where the rows of the gradient stand
    labels_ptr,  # [N] or None
    present_ptr,  # [N, M] or None
    weight_ptr,  # [N] or None
    subsets_ptr,  # [S]
    factors_ptr,  # [S] upstream gradient over the weights' sum
    upstream_ptr,  # [S] or None: return at once if all are equal
    values_ptr,  # [S, programs]
    stats_ptr,  # [S, K, N, 2]: log2 of the sum of p 2^delta, KL(q|m) / ln 2
    p_ptr,  # [N, C]
    lse_ptr,  # [N], and
    normal_ptr,  # [N] whether p is far from underflow
    grad_ptr,  # [parts, M, N, C]
    shared_ptr,  # [programs, C] or None: the bias's
    num_modalities,
    num_subsets,
    num_rows,
    num_permutations,
    num_classes,
    part_permutations,
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
        if all_equal(upstream_ptr, num_subsets):
            return
    part = tl.program_id(1).to(tl.int64)
    program = part * tl.num_programs(0) + tl.program_id(0)
    programs = tl.num_programs(0) * tl.num_programs(1)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    classes = tl.arange(0, BLOCK_C)
    mask = (rows < num_rows)[:, None] & (classes < num_classes)[None, :]
    out = rows
    if order_ptr is not None:
        out = tl.load(order_ptr + rows, mask=rows < num_rows, other=0)
    masks = (donors_ptr, labels_ptr, present_ptr, weight_ptr)
    sizes = (num_modalities, num_rows, num_permutations, num_classes)
    first = tl.program_id(1) * part_permutations
    last = tl.minimum(first + part_permutations, num_permutations)
    if GRAD:
        grad_ptr += part * num_modalities * num_rows * num_classes
    shared = tl.zeros([BLOCK_C], tl.float32)
    for s in range(num_subsets):
        subset = tl.load(subsets_ptr + s)
        size, member = members_of(subset, num_modalities)
        stats = stats_ptr
        if GRAD and KIND == JSD:
            stats += (tl.full((), 2, tl.int64) * s) * num_permutations * num_rows
        value, u_sum, v = own_subset(
            x_ptr, bias_ptr, masks, stats, p_ptr, lse_ptr, normal_ptr, subset, member, first,
            last, rows, classes, sizes, KIND, SCHEME, OWN_DONORS, SINGLE, MASKED, EXCLUDE, GRAD,
            PRECISE,
        )  # fmt: skip
        factor = tl.load(factors_ptr + s) * (1.0 if KIND == SQUARED_ERROR else HALF_LN2)
        tl.store(values_ptr + s * programs + program, tl.sum(value * factor, 0))
        if GRAD:
            both = store_own_side(
                grad_ptr, out, classes, mask, sizes, subset, size, s > 0, u_sum * factor,
                v * factor, CLEAN_PATH, OUTSIDER,
            )  # fmt: skip
            shared += tl.sum(tl.where(mask, both, 0.0), 0)
    if shared_ptr is not None:
        tl.store(shared_ptr + program * num_classes + classes, shared, mask=classes < num_classes)
