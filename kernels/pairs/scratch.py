"""What the own side of a small batch leaves for the donor side: one stretch of memory.

Nothing in it has its factor yet, for what the kept pairs weigh together is known to the kernel
that comes after.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Scratch(NamedTuple):
    """Where everything lies: float32."""

    sums: Any  # [S, 2, N, C] of u and v over the pairs of a row
    rows: Any  # [M, N, C], the contributions laid out
    p: Any  # [N, C], and on: `Notes`
    bias: Any  # [C], laid out
    row_values: Any  # [S, N]
    weights: Any  # [S, N], sums of pair weights
    lse: Any  # [N]
    normal: Any  # [N]
    stats: Any  # [S, K, N, 2]
    pair_weights: Any  # [S, K, N]
    poison: Any  # [lines], NaN for each that is no permutation


def size_of(
    num_subsets: int,
    num_modalities: int,
    num_rows: int,
    num_permutations: int,
    num_classes: int,
    lines: int,
) -> int:
    """Numbers of a `Scratch`."""
    of_classes = (2 * num_subsets + num_modalities + 1) * num_rows + 1
    of_rows = 2 * num_subsets + 2 + 3 * num_subsets * num_permutations
    return of_classes * num_classes + of_rows * num_rows + lines


@triton.jit
def scratch_at(ptr, num_subsets, num_modalities, num_rows, num_permutations, num_classes):
    """The parts of `size_of` numbers."""
    size = tl.full((), 0, tl.int64) + num_rows * num_classes
    pairs = num_subsets * num_permutations * num_rows
    sums = ptr
    rows = sums + 2 * num_subsets * size
    p = rows + num_modalities * size
    bias = p + size
    row_values = bias + num_classes
    weights = row_values + num_subsets * num_rows
    lse = weights + num_subsets * num_rows
    normal = lse + num_rows
    stats = normal + num_rows
    pair_weights = stats + 2 * pairs
    poison = pair_weights + pairs
    return Scratch(
        sums, rows, p, bias, row_values, weights, lse, normal, stats, pair_weights, poison
    )  # fmt: skip
