"""Who donates to whom, and what a pair weighs: shared by the kernels of permuted_divergence.

Rows are numbered by position: the launcher applies the cyclic scheme's order to its inputs once,
after which donors are position + shift, contiguous in memory. `sizes` is (M, N, K, C).
"""

import triton
import triton.language as tl

TABLE = tl.constexpr(0)  # donors [1 or M, K, N]
SHIFTS = tl.constexpr(1)  # donors [1 or M, K]
EXHAUSTIVE = tl.constexpr(2)  # no donors: shift k + 1

KEEP_ALL = tl.constexpr(0)
DROP_SELF = tl.constexpr(1)
DROP_SAME_LABEL = tl.constexpr(2)
# Of a row whose label is NaN: this and the row's number (is_nan_code of the reference).
NAN_CODES = tl.constexpr(0x7FF8_0000_0000_0001)
EXCLUDE = {"none": 0, "self": 1, "same_label": 2}


@triton.jit
def donors_of(
    donors_ptr,  # the table, or its inverse; the shifts
    rows,  # [BLOCK_R]
    m,
    k,
    sizes,
    SCHEME: tl.constexpr,
    OWN_DONORS: tl.constexpr,
    INVERSE: tl.constexpr,
):
    """The row that replaces each row under permutation k, or with INVERSE the row it replaces."""
    num_rows = sizes[1]
    line = tl.full((), 0, tl.int64) + k
    if OWN_DONORS:
        line += m * sizes[2]
    if SCHEME == TABLE:
        inside = rows < num_rows
        return tl.load(donors_ptr + line * num_rows + rows, mask=inside, other=0).to(tl.int64)
    if SCHEME == SHIFTS:
        shift = tl.load(donors_ptr + line)
    else:
        shift = line + 1
    if INVERSE:
        shift = num_rows - shift
    j = rows + shift
    return tl.where(j >= num_rows, j - num_rows, j)


@triton.jit
def pair_weight(
    rows,  # [BLOCK_R]
    subset,
    k,
    masks,  # donors; labels [N], present [N, M] and weight [N], or None
    sizes,
    SCHEME: tl.constexpr,
    OWN_DONORS: tl.constexpr,
    EXCLUDE: tl.constexpr,
):
    """The weight of each pair (row, its donors), 0 where it is dropped and outside the batch."""
    donors_ptr, labels_ptr, present_ptr, weight_ptr = masks
    num_modalities = sizes[0]
    inside = rows < sizes[1]
    kept = inside
    for m in range(num_modalities):
        if (subset >> m) & 1:
            j = donors_of(donors_ptr, rows, m, k, sizes, SCHEME, OWN_DONORS, False)
            if EXCLUDE == DROP_SELF:
                kept = kept & (j != rows)
            if EXCLUDE == DROP_SAME_LABEL:
                mine = tl.load(labels_ptr + rows, mask=inside, other=0)
                # NaN equals nothing, itself included
                nan = (mine >= NAN_CODES) & (mine < NAN_CODES + (1 << 31))
                kept = kept & (nan | (tl.load(labels_ptr + j, mask=inside, other=0) != mine))
            if present_ptr is not None:
                here = tl.load(present_ptr + rows * num_modalities + m, mask=inside, other=0)
                there = tl.load(present_ptr + j * num_modalities + m, mask=inside, other=0)
                kept = kept & (here != 0) & (there != 0)
    # else: Triton compiles what follows a return, even one that is always taken
    if weight_ptr is None:
        return kept.to(tl.float32)
    else:
        weight = tl.load(weight_ptr + rows, mask=inside, other=0.0).to(tl.float32)
        # a weight below 0 is an error that cannot be raised here
        return tl.where(kept, tl.where(weight < 0.0, float("nan"), weight), 0.0)


@triton.jit
def _pair_weight_sums_kernel(
    donors_ptr,
    labels_ptr,
    present_ptr,
    weight_ptr,
    subsets_ptr,  # [S]
    sums_ptr,  # [S, row blocks]
    num_modalities,
    num_rows,
    num_permutations,
    SCHEME: tl.constexpr,
    OWN_DONORS: tl.constexpr,
    EXCLUDE: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    block = tl.program_id(0)
    s = tl.program_id(1)
    rows = block.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    subset = tl.load(subsets_ptr + s)
    masks = (donors_ptr, labels_ptr, present_ptr, weight_ptr)
    sizes = (num_modalities, num_rows, num_permutations, 0)
    total = tl.zeros([BLOCK_R], tl.float32)
    for k in range(num_permutations):
        total += pair_weight(rows, subset, k, masks, sizes, SCHEME, OWN_DONORS, EXCLUDE)
    tl.store(sums_ptr + s * tl.num_programs(0) + block, tl.sum(total, 0))
