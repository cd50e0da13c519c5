"""Who donates to whom, and what a pair weighs: shared by the kernels of permuted_divergence.

Rows are numbered by position: by the cyclic scheme's order, after which donors are position +
shift. The launcher lays out the contributions in that order; labels, presence and weights are
few numbers a row and are read through it.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

TABLE = tl.constexpr(0)  # donors [1 or M, K, N]
SHIFTS = tl.constexpr(1)  # donors [1 or M, K]
EXHAUSTIVE = tl.constexpr(2)  # no donors: shift k + 1

KEEP_ALL = tl.constexpr(0)
DROP_SELF = tl.constexpr(1)
DROP_SAME_LABEL = tl.constexpr(2)
EXCLUDE = {"none": 0, "self": 1, "same_label": 2}
# Of a row whose label is NaN: this and the row's number (is_nan_code of the reference).
NAN_CODES = tl.constexpr(0x7FF8_0000_0000_0001)


class Pairs(NamedTuple):
    """The pairs of a batch, as a kernel hands them on."""

    donors_ptr: Any  # [1 or M, K, N], [1 or M, K] or None
    labels_ptr: Any  # [N] or None
    present_ptr: Any  # [N, M] or None
    weight_ptr: Any  # [N] or None
    order_ptr: Any  # [N] or None: which row of the inputs has a position
    num_modalities: Any
    num_rows: Any
    num_permutations: Any


class Options(NamedTuple):
    """Constexprs of every kernel over pairs.

    To be made where a kernel hands them on: of what has a name Triton makes tensors.
    """

    SCHEME: Any
    OWN_DONORS: Any  # every modality has its own
    SINGLE: Any  # every subset has one member
    EXCLUDE: Any


@triton.jit
def in_batch(rows, num_rows):
    """The rows, 0 in place of one that there is not: what was given may be no permutation."""
    return tl.where((rows >= 0) & (rows < num_rows), rows, 0)


@triton.jit
def input_rows(rows, pairs):
    """Where the rows of these positions stand in the inputs."""
    if pairs.order_ptr is None:
        return rows
    else:
        order = tl.load(pairs.order_ptr + rows, mask=rows < pairs.num_rows, other=0)
        return in_batch(order, pairs.num_rows)


@triton.jit
def other_rows(ptr, rows, m, k, pairs, options, BACK: tl.constexpr):
    """What a table or shifts hold for rows under permutation k; with BACK shifts go back."""
    num_rows = pairs.num_rows
    line = tl.full((), 0, tl.int64) + k
    if options.OWN_DONORS:
        line += m * pairs.num_permutations
    if options.SCHEME == TABLE:
        return tl.load(ptr + line * num_rows + rows, mask=rows < num_rows, other=0).to(tl.int64)
    if options.SCHEME == SHIFTS:
        shift = tl.load(ptr + line)
    else:
        shift = line + 1
    if BACK:
        shift = num_rows - shift
    j = rows + shift
    return tl.where(j >= num_rows, j - num_rows, j)


@triton.jit
def donors_of(rows, m, k, pairs, options):
    """The donor of each row under permutation k."""
    return other_rows(pairs.donors_ptr, rows, m, k, pairs, options, False)


@triton.jit
def receivers_of(rows, m, k, pairs, inverse_ptr, options):
    """The row that each row gives to under permutation k; `inverse_ptr` inverts a table."""
    return other_rows(inverse_ptr, rows, m, k, pairs, options, True)


def packed(subsets: list[int]) -> dict[str, int]:
    """The subsets as numbers that a kernel is compiled for: no tensor has to live on the device."""
    words = sum(subset << 8 * s for s, subset in enumerate(subsets))
    return {"SUBSETS": words, "NUM_SUBSETS": len(subsets)}


@triton.jit
def subset_bits(s, SUBSETS: tl.constexpr, NUM_SUBSETS: tl.constexpr):
    """The s-th subset of `packed` ones."""
    bits = 0
    for t in tl.static_range(NUM_SUBSETS):
        bits = tl.where(s == t, (SUBSETS >> (8 * t)) & 255, bits)
    return bits


@triton.jit
def pair_weight(rows, subset, k, pairs, options):
    """The weight of each pair (row, its donors), 0 where it is dropped and outside the batch."""
    inside = rows < pairs.num_rows
    kept = inside
    at_row = input_rows(rows, pairs)
    for m in range(pairs.num_modalities):
        if (subset >> m) & 1:
            j = in_batch(donors_of(rows, m, k, pairs, options), pairs.num_rows)
            if options.EXCLUDE == DROP_SELF:
                kept = kept & (j != rows)
            if options.EXCLUDE == DROP_SAME_LABEL:
                label = tl.load(pairs.labels_ptr + at_row, mask=inside, other=0)
                of_donor = tl.load(pairs.labels_ptr + input_rows(j, pairs), mask=inside, other=0)
                # NaN equals nothing, itself included
                nan = (label >= NAN_CODES) & (label < NAN_CODES + (1 << 31))
                kept = kept & (nan | (of_donor != label))
            if pairs.present_ptr is not None:
                at = at_row * pairs.num_modalities + m
                here = tl.load(pairs.present_ptr + at, mask=inside, other=0)
                at = input_rows(j, pairs) * pairs.num_modalities + m
                there = tl.load(pairs.present_ptr + at, mask=inside, other=0)
                kept = kept & (here != 0) & (there != 0)
    # else: Triton compiles what follows a return, even one that is always taken
    if pairs.weight_ptr is None:
        return kept.to(tl.float32)
    else:
        weight = tl.load(pairs.weight_ptr + at_row, mask=inside, other=0.0).to(tl.float32)
        # a weight below 0 is an error that cannot be raised here
        return tl.where(kept, tl.where(weight < 0.0, float("nan"), weight), 0.0)


@triton.jit
def _pair_weight_sums_kernel(
    donors_ptr,
    labels_ptr,
    present_ptr,
    weight_ptr,
    order_ptr,
    sums_ptr,  # [S, row blocks]
    num_modalities,
    num_rows,
    num_permutations,
    SUBSETS: tl.constexpr,
    NUM_SUBSETS: tl.constexpr,
    SCHEME: tl.constexpr,
    OWN_DONORS: tl.constexpr,
    EXCLUDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    block = tl.program_id(0)
    s = tl.program_id(1)
    rows = block.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    subset = subset_bits(s, SUBSETS, NUM_SUBSETS)
    pairs = Pairs(
        donors_ptr, labels_ptr, present_ptr, weight_ptr, order_ptr,
        num_modalities, num_rows, num_permutations,
    )  # fmt: skip
    total = tl.zeros([BLOCK_R], tl.float32)
    for k in range(num_permutations):
        total += pair_weight(rows, subset, k, pairs, Options(SCHEME, OWN_DONORS, False, EXCLUDE))
    tl.store(sums_ptr + s * tl.num_programs(0) + block, tl.sum(total, 0))
