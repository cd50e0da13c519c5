"""The two kernels of permuted_divergence: own side and donor side of every pair.

    w(S, i, j) = z_i + sum_{m in S} (A_m[j] - A_m[i]),   u = dD_S/dw,   v = dD_S/dz
    A_m[j] += u for m in S,   A_m[i] += k u for m not in S,   A_m[i] += c(S, m) v

The first keeps a tile of rows in registers while it runs through their donors: value, own side of
the gradient, and two numbers a pair. The second keeps a tile of donors and runs through the rows
that they replace, the inverse permutations; with the two numbers it needs no sum over classes. No
two programs add to one address, so nothing depends on their order.
"""

import triton
import triton.language as tl

from mcr_fast.kernels._divergence import (
    BINARY_JSD,
    JSD,
    NEAR,
    SQUARED_ERROR,
    binary_terms,
    careful_jsd,
    clean_softmax,
    log_ratios,
    logistic,
    plain_jsd,
)
from mcr_fast.kernels._math import HALF_LN2, LOG2E, exp2, log2
from mcr_fast.kernels._pairs import donors_of, pair_weight

SHARED = tl.constexpr(0)
ROUTED = tl.constexpr(1)
DETACHED = tl.constexpr(2)
CLEAN_PATHS = {"shared": 0, "routed": 1, "detached": 2}
OUTSIDERS = {"greedy": -1, "independent": 0, "collaborative": 1}


@triton.jit
def all_equal(upstream_ptr, num_subsets):
    """Whether the upstream gradients of all subsets are the same number."""
    first = tl.load(upstream_ptr)
    different = 0
    for s in range(num_subsets):
        different += (tl.load(upstream_ptr + s) != first).to(tl.int32)
    return different == 0


@triton.jit
def members_of(subset, num_modalities):
    """Number of members, and the last one."""
    size = 0
    member = 0
    for m in range(num_modalities):
        if (subset >> m) & 1:
            size += 1
            member = m
    return size, member


@triton.jit
def load_rows(x_ptr, m, rows, classes, mask, num_rows, num_classes):
    """A_m of some rows, as float32; 0 outside the mask."""
    at = (m * num_rows + rows)[:, None] * num_classes + classes[None, :]
    return tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_clean(x_ptr, bias_ptr, rows, classes, mask, num_modalities, num_rows, num_classes):
    """z, with NaN for an infinite logit."""
    z = tl.zeros([rows.shape[0], classes.shape[0]], tl.float32)
    if bias_ptr is not None:
        b = tl.load(bias_ptr + classes, mask=classes < num_classes, other=0.0).to(tl.float32)
        z += b[None, :]
    for m in range(num_modalities):
        z += load_rows(x_ptr, m, rows, classes, mask, num_rows, num_classes)
    return z + 0.0 * z


@triton.jit
def load_members(
    x_ptr,
    donors_ptr,
    subset,
    member,  # the only one, if SINGLE
    rows,
    k,
    classes,
    mask,
    num_modalities,
    num_rows,
    num_permutations,
    num_classes,
    DONORS: tl.constexpr,  # the rows' donors, or the rows themselves
    SCHEME: tl.constexpr,
    OWN_DONORS: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """Sum over the subset's members of A_m, in the order that both kernels add in."""
    total = tl.zeros([rows.shape[0], classes.shape[0]], tl.float32)
    j = rows
    if SINGLE:
        if DONORS:
            j = donors_of(
                donors_ptr, rows, member, k, num_rows, num_permutations, SCHEME, OWN_DONORS, False
            )
        total = load_rows(x_ptr, member, j, classes, mask, num_rows, num_classes)
    else:
        for m in range(num_modalities):
            if (subset >> m) & 1:
                if DONORS:
                    j = donors_of(
                        donors_ptr, rows, m, k, num_rows, num_permutations, SCHEME, OWN_DONORS, False
                    )
                total += load_rows(x_ptr, m, j, classes, mask, num_rows, num_classes)
    return total


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
    if upstream_ptr is not None:
        if all_equal(upstream_ptr, num_subsets):
            return
    part = tl.program_id(1)
    program = part * tl.num_programs(0) + tl.program_id(0)
    rows = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    classes = tl.arange(0, BLOCK_C)
    inside = rows < num_rows
    real = classes < num_classes
    mask = inside[:, None] & real[None, :]
    unit = 1.0 if KIND == SQUARED_ERROR else LOG2E
    first = part * part_permutations
    last = tl.minimum(first + part_permutations, num_permutations)
    shared = tl.zeros([BLOCK_C], tl.float32)
    for s in range(num_subsets):
        subset = tl.load(subsets_ptr + s)
        size, member = members_of(subset, num_modalities)
        factor = tl.load(factors_ptr + s)
        z = unit * load_clean(
            x_ptr, bias_ptr, rows, classes, mask, num_modalities, num_rows, num_classes
        )
        own = load_members(
            x_ptr, donors_ptr, subset, member, rows, 0, classes, mask, num_modalities, num_rows,
            num_permutations, num_classes, False, SCHEME, OWN_DONORS, SINGLE,
        )  # fmt: skip
        if KIND == JSD:
            own *= unit
        lse = tl.zeros([BLOCK_R], tl.float32)
        normal = inside
        p = z
        if KIND == JSD:
            z = tl.where(real[None, :], z, -float("inf"))
            p, lse, normal = clean_softmax(z, PRECISE)
            if GRAD:
                # every part and subset writes the same numbers
                p_at = rows[:, None] * num_classes + classes[None, :]
                tl.store(p_ptr + p_at, p, mask=mask)
                tl.store(lse_ptr + rows, lse, mask=inside)
                tl.store(normal_ptr + rows, normal.to(tl.int8), mask=inside)
        if KIND == BINARY_JSD:
            p, off, log2_p = logistic(z, PRECISE)
        acc = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        u_sum = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
        value = tl.zeros([BLOCK_R], tl.float32)
        seen = tl.zeros([BLOCK_R], tl.int1)
        for k in range(first, last):
            there = load_members(
                x_ptr, donors_ptr, subset, member, rows, k, classes, mask, num_modalities,
                num_rows, num_permutations, num_classes, True, SCHEME, OWN_DONORS, SINGLE,
            )  # fmt: skip
            if KIND == JSD:
                delta = tl.fma(there, unit, -own)
            else:
                delta = (there - own) * unit
            kept = inside
            weight = tl.full([BLOCK_R], 1.0, tl.float32)
            if MASKED:
                weight = pair_weight(
                    rows, subset, k, donors_ptr, labels_ptr, present_ptr, weight_ptr,
                    num_modalities, num_rows, num_permutations, SCHEME, OWN_DONORS, EXCLUDE,
                )  # fmt: skip
                kept = weight != 0.0
            if KIND == JSD:
                mass, log, scale, offset, g, kl_q, shift, in_range, plain = plain_jsd(
                    delta, p, PRECISE
                )
                if tl.min(((plain & normal) | ~kept).to(tl.int32), 0) == 0:
                    z = LOG2E * load_clean(
                        x_ptr, bias_ptr, rows, classes, mask, num_modalities, num_rows, num_classes
                    )
                    z = tl.where(real[None, :], z, -float("inf"))
                    # equal rows must differ by 0, which the rounded product above does not give
                    again = load_members(
                        x_ptr, donors_ptr, subset, member, rows, k, classes, mask, num_modalities,
                        num_rows, num_permutations, num_classes, True, SCHEME, OWN_DONORS, SINGLE,
                    )  # fmt: skip
                    exact = load_members(
                        x_ptr, donors_ptr, subset, member, rows, k, classes, mask, num_modalities,
                        num_rows, num_permutations, num_classes, False, SCHEME, OWN_DONORS, SINGLE,
                    )  # fmt: skip
                    delta = (again - exact) * unit
                    mass, log, scale, offset, g, kl_q, shift = careful_jsd(
                        delta, p, z, lse, in_range & normal, PRECISE
                    )
                to_clean = g
                if GRAD:
                    pair = ((tl.full((), 0, tl.int64) + s) * num_permutations + k) * num_rows + rows
                    tl.store(stats_ptr + 2 * pair, shift, mask=inside)
                    tl.store(stats_ptr + 2 * pair + 1, kl_q, mask=inside)
                    to_donor = mass * tl.fma(log, scale[:, None], offset[:, None])
                    row_value = kl_q
                else:
                    to_donor = mass
                    row_value = kl_q - tl.sum(p * g, 1)
            elif KIND == BINARY_JSD:
                terms, to_donor, to_clean = binary_terms(delta, p, off, log2_p, z, PRECISE)
                row_value = tl.sum(tl.where(real[None, :], terms, 0.0), 1)
            else:
                # 0 * delta: an infinite difference is NaN, as it is for the other divergences
                to_donor = 2.0 * (delta + 0.0 * (delta + z))
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
        unit_factor = factor if KIND == SQUARED_ERROR else HALF_LN2 * factor
        if GRAD:
            if KIND == JSD:
                acc_kl = tl.sum(p * acc, 1)
                value -= acc_kl
                v = p * (acc_kl[:, None] - acc)
            elif KIND == BINARY_JSD:
                v = p * off * acc
            else:
                v = acc
            if MASKED:
                v = tl.where(seen[:, None], v, 0.0)
                value = tl.where(seen, value, 0.0)
            v *= unit_factor
            u_sum *= unit_factor
            head = size + OUTSIDER * (num_modalities - size)
            if OUTSIDER > 0:
                head = size * 0 + 1
            clean_head = head * 0 if CLEAN_PATH == DETACHED else head
            if shared_ptr is not None:
                both = head * u_sum + clean_head * v
                shared += tl.sum(tl.where(inside[:, None], both, 0.0), 0)
            out = rows
            if order_ptr is not None:
                out = tl.load(order_ptr + rows, mask=inside, other=0)
            for m in range(num_modalities):
                member_of = (subset >> m) & 1
                outside = (1 - member_of) * OUTSIDER
                clean = clean_head
                if CLEAN_PATH == ROUTED:
                    clean = member_of + outside
                plane = part * num_modalities + m
                at = (plane * num_rows + out)[:, None] * num_classes + classes[None, :]
                before = tl.load(grad_ptr + at, mask=mask & (s > 0), other=0.0)
                tl.store(grad_ptr + at, before + outside * u_sum + clean * v, mask=mask)
        # equal rows but for a rounding can sum up to a rounding below 0; NaN stays NaN
        value = tl.where(inside & ~(value <= 0.0), value * unit_factor, 0.0)
        programs = tl.num_programs(0) * tl.num_programs(1)
        tl.store(values_ptr + s * programs + program, tl.sum(value, 0))
    if shared_ptr is not None:
        tl.store(shared_ptr + program * num_classes + classes, shared, mask=real)


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
    if upstream_ptr is not None:
        if all_equal(upstream_ptr, num_subsets):
            return
    m = tl.program_id(1)
    part = tl.program_id(2)
    block = tl.program_id(0) // class_blocks
    rows = block.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    classes = tl.program_id(0) % class_blocks * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = rows < num_rows
    mask = inside[:, None] & (classes < num_classes)[None, :]
    unit = 1.0 if KIND == SQUARED_ERROR else LOG2E
    first = part * part_permutations
    last = tl.minimum(first + part_permutations, num_permutations)
    mine = load_rows(x_ptr, m, rows, classes, mask, num_rows, num_classes)
    total = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    for s in range(num_subsets):
        subset = tl.load(subsets_ptr + s)
        size, member = members_of(subset, num_modalities)
        if (subset >> m) & 1:
            u_sum = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
            for k in range(first, last):
                i = donors_of(
                    inverse_ptr, rows, m, k, num_rows, num_permutations, SCHEME, OWN_DONORS, True
                )
                own = load_members(
                    x_ptr, donors_ptr, subset, member, i, k, classes, mask, num_modalities,
                    num_rows, num_permutations, num_classes, False, SCHEME, OWN_DONORS, SINGLE,
                )  # fmt: skip
                there = mine
                if not SINGLE:
                    there = load_members(
                        x_ptr, donors_ptr, subset, member, i, k, classes, mask, num_modalities,
                        num_rows, num_permutations, num_classes, True, SCHEME, OWN_DONORS, False,
                    )  # fmt: skip
                difference = there - own
                if KIND == JSD:
                    p_at = i[:, None] * num_classes + classes[None, :]
                    p = tl.load(p_ptr + p_at, mask=mask, other=0.0)
                    pair = ((tl.full((), 0, tl.int64) + s) * num_permutations + k) * num_rows + i
                    shift = tl.load(stats_ptr + 2 * pair, mask=inside, other=0.0)
                    kl_q = tl.load(stats_ptr + 2 * pair + 1, mask=inside, other=0.0)
                    d = tl.fma(difference, unit, -shift[:, None])
                    ratio = exp2(d, PRECISE)
                    g = log2(tl.fma(ratio, 0.5, 0.5), PRECISE)
                    u = p * ratio * (d - kl_q[:, None] - g)
                    normal = tl.load(normal_ptr + i, mask=inside, other=1)
                    plain = (normal != 0) & (kl_q > NEAR)
                    if tl.min((plain | ~inside).to(tl.int32), 0) == 0:
                        z = LOG2E * load_clean(
                            x_ptr, bias_ptr, i, classes, mask, num_modalities, num_rows,
                            num_classes,
                        )  # fmt: skip
                        lse = tl.load(lse_ptr + i, mask=inside, other=0.0)
                        d = difference * unit - shift[:, None]
                        q = exp2(z - lse[:, None] + d, PRECISE) + 0.0 * difference
                        log2_qm, log2_pm = log_ratios(d, PRECISE)
                        u = q * (log2_qm - kl_q[:, None])
                elif KIND == BINARY_JSD:
                    z = LOG2E * load_clean(
                        x_ptr, bias_ptr, i, classes, mask, num_modalities, num_rows, num_classes
                    )
                    on, off, log2_on = logistic(z, PRECISE)
                    terms, u, to_clean = binary_terms(
                        difference * unit, on, off, log2_on, z, PRECISE
                    )
                else:
                    u = 2.0 * (difference + 0.0 * difference)
                if MASKED:
                    weight = pair_weight(
                        i, subset, k, donors_ptr, labels_ptr, present_ptr, weight_ptr,
                        num_modalities, num_rows, num_permutations, SCHEME, OWN_DONORS, EXCLUDE,
                    )  # fmt: skip
                    u = tl.where((weight != 0.0)[:, None], weight[:, None] * u, 0.0)
                u_sum += u
            factor = tl.load(factors_ptr + s)
            total += u_sum * (factor if KIND == SQUARED_ERROR else HALF_LN2 * factor)
    out = rows
    if order_ptr is not None:
        out = tl.load(order_ptr + rows, mask=inside, other=0)
    plane = part * num_modalities + m
    at = (plane * num_rows + out)[:, None] * num_classes + classes[None, :]
    tl.store(grad_ptr + at, tl.load(grad_ptr + at, mask=mask, other=0.0) + total, mask=mask)
