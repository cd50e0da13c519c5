"""What a program reads of the contributions: its own tile, its donors, a subset's members.

Named tuples carry what travels together; a kernel makes them and hands them on.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mcr_fast.kernels.pairs.donors import Pairs, donors_of


class Tile(NamedTuple):
    """Rows by classes of one program, and the batch that they are of."""

    x_ptr: Any  # [M, N, C], the contributions
    bias_ptr: Any  # [C] or None
    pairs: Pairs
    num_classes: Any
    rows: Any  # [BLOCK_R]
    classes: Any  # [BLOCK_C]
    inside: Any  # [BLOCK_R, BLOCK_C], what lies within the batch


class Subset(NamedTuple):
    """A subset of the modalities."""

    bits: Any
    size: Any
    member: Any  # the last one


@triton.jit
def subset_of(bits, num_modalities):
    """The subset of these bits."""
    size = 0
    member = 0
    for m in range(num_modalities):
        if (bits >> m) & 1:
            size += 1
            member = m
    return Subset(bits, size, member)


@triton.jit
def load_rows(tile, m, rows):
    """A_m of some rows, one for each of the tile's, as float32; 0 outside the batch."""
    at = (m * tile.pairs.num_rows + rows)[:, None] * tile.num_classes + tile.classes[None, :]
    return tl.load(tile.x_ptr + at, mask=tile.inside, other=0.0).to(tl.float32)


@triton.jit
def load_rest(tile, bits, rows):
    """What is not taken from donors: z less the subset's members, and z itself for no bits.

    NaN for an infinite logit. z less the members' sum would not tell it where they hold a mask.
    """
    z = tl.zeros(tile.inside.shape, tl.float32)
    if tile.bias_ptr is not None:
        real = tile.classes < tile.num_classes
        bias = tl.load(tile.bias_ptr + tile.classes, mask=real, other=0.0).to(tl.float32)
        z += bias[None, :]
    for m in range(tile.pairs.num_modalities):
        if ((bits >> m) & 1) == 0:
            z += load_rows(tile, m, rows)
    return z + 0.0 * z


@triton.jit
def load_members(tile, subset, rows, k, options, DONORS: tl.constexpr):
    """Sum over the subset's members of A_m, of rows or, with DONORS, of their donors.

    Both sides add up in one order.
    """
    j = rows
    if options.SINGLE:
        if DONORS:
            j = donors_of(rows, subset.member, k, tile.pairs, options)
        return load_rows(tile, subset.member, j)
    else:
        total = tl.zeros(tile.inside.shape, tl.float32)
        for m in range(tile.pairs.num_modalities):
            if (subset.bits >> m) & 1:
                if DONORS:
                    j = donors_of(rows, m, k, tile.pairs, options)
                total += load_rows(tile, m, j)
        return total
