"""What both kernels of permuted_divergence read: rows, their sums over a subset, divergences.

Arguments that travel together are tuples: `sizes` = (M, N, K, C) and `masks` = (donors, labels,
present, weight), the pointers that decide what a pair weighs.
"""

import triton
import triton.language as tl

from mcr_fast.kernels.pairs.donors import donors_of


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
def load_rows(x_ptr, m, rows, classes, mask, sizes):
    """A_m of some rows, as float32; 0 outside the mask."""
    at = (m * sizes[1] + rows)[:, None] * sizes[3] + classes[None, :]
    return tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_rest(x_ptr, bias_ptr, subset, rows, classes, mask, sizes):
    """What is not taken from donors: z less the subset's members, and z itself for subset 0.

    NaN for an infinite logit. z less the members' sum would not tell it where they hold a mask.
    """
    z = tl.zeros([rows.shape[0], classes.shape[0]], tl.float32)
    if bias_ptr is not None:
        b = tl.load(bias_ptr + classes, mask=classes < sizes[3], other=0.0).to(tl.float32)
        z += b[None, :]
    for m in range(sizes[0]):
        if ((subset >> m) & 1) == 0:
            z += load_rows(x_ptr, m, rows, classes, mask, sizes)
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
    sizes,
    DONORS: tl.constexpr,  # the rows' donors, or the rows themselves
    SCHEME: tl.constexpr,
    OWN_DONORS: tl.constexpr,
    SINGLE: tl.constexpr,
):
    """Sum over the subset's members of A_m, added up in one order by both kernels."""
    j = rows
    if SINGLE:
        if DONORS:
            j = donors_of(donors_ptr, rows, member, k, sizes, SCHEME, OWN_DONORS, False)
        return load_rows(x_ptr, member, j, classes, mask, sizes)
    else:
        total = tl.zeros([rows.shape[0], classes.shape[0]], tl.float32)
        for m in range(sizes[0]):
            if (subset >> m) & 1:
                if DONORS:
                    j = donors_of(donors_ptr, rows, m, k, sizes, SCHEME, OWN_DONORS, False)
                total += load_rows(x_ptr, m, j, classes, mask, sizes)
        return total
