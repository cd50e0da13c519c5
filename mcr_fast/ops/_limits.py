"""What a backend takes of an op that it has kernels for: the one place that says so.

A limit reads a `Call`, in which nothing stands that a device would have to be waited for.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

MAX_MODALITIES = 8  # of every kernel of permuted_divergence
TRITON_CLASSES = 4096  # its divergences keep whole rows in registers
# What CUDA C++ takes are the constants of csrc/contrastive/cuda/small.h,
SMALL_ROWS, SMALL_WIDTH = 1024, 4096
# and of csrc/permuted_divergence/cuda/inputs.h: of a small batch the most rows and classes, less
# than so many elements, and pairs at most where every block adds up what they weigh,
SMALL_PAIR_ROWS, SMALL_PAIR_CLASSES = 256, 192
SMALL_ELEMENTS, SMALL_WEIGHED = 1 << 20, 1 << 15
# and of a large one the least rows, the most classes, the most rows times classes, and the bytes of
# shared memory that a block has to be given (csrc/permuted_divergence/cuda/kernels.h).
BAND_ROWS, BAND_CLASSES, BAND_ELEMENTS, BAND_SHARED = 64, 4096, 1 << 27, 125440


class Pairs(NamedTuple):
    """Which pairs of rows a divergence is over."""

    rows: int  # N
    permutations: int  # K
    subsets: tuple[int, ...]
    divergence: str
    donors: str  # "exhaustive", "cyclic", "table", or "own": each modality has its own
    weighs: bool  # whether what the pairs of a subset weigh has to be added up


class Call(NamedTuple):
    """What decides which backends take a call of an op; None where it is not known."""

    size: int | None = None  # classes of the divergences, rows L of the contrastive losses
    width: int | None = None  # D of the contrastive losses
    modalities: int | None = None
    pairs: Pairs | None = None
    shared: int | None = None  # bytes of shared memory that a block of the GPU may have


# What a backend takes of an op, and what a call has that it does not take. The latter becomes words
# where an error is raised alone: to a compiler a number in words is one that never changes.
Refusal = tuple[str, object]
Limit = Callable[[Call], Refusal | None]


def pairs_of(rows: int, arguments: tuple[Any, ...]) -> Pairs:
    """The pairs of `permuted_divergence_fwd`, of its arguments from the order to `exclude`."""
    order, donors, _, present, sample_weight, subsets, _, _, divergence, exclude = arguments
    kind, permutations = "exhaustive", max(rows - 1, 0)
    if donors is not None:
        permutations = donors.shape[1]
        kind = "own" if donors.shape[0] > 1 else "table" if order is None else "cyclic"
    weighs = exclude != "none" or present is not None or sample_weight is not None
    return Pairs(rows, permutations, subsets, divergence, kind, weighs)


def modalities(call: Call) -> Refusal | None:
    """Of the pairs' kernels."""
    return _at_most(MAX_MODALITIES, "modalities", call.modalities)


def rows_of_triton(call: Call) -> Refusal | None:
    """Of row_divergence."""
    return _at_most(TRITON_CLASSES, "classes", call.size)


def pairs_of_triton(call: Call) -> Refusal | None:
    """Of permuted_divergence."""
    return modalities(call) or rows_of_triton(call)


def pairs_of_cuda(call: Call) -> Refusal | None:
    """Small batches of any kind; of large ones those whose pairs lie in a band."""
    if call.pairs is None or call.size is None or _is_small(call.pairs, call.size):
        return modalities(call)
    return modalities(call) or in_a_band(call)


def contrastive_of_cuda(call: Call) -> Refusal | None:
    """Small batches."""
    if call.width == 0:
        return "at least 1 column", 0
    return _at_most(SMALL_ROWS, "rows", call.size) or _at_most(SMALL_WIDTH, "columns", call.width)


def _at_most(most: int, what: str, count: int | None) -> Refusal | None:
    return None if count is None or count <= most else (f"at most {most} {what}", count)


def _is_small(pairs: Pairs, classes: int) -> bool:
    count = len(pairs.subsets) * pairs.rows * pairs.permutations
    if count * classes == 0:  # nothing at all, whatever the shapes
        return True
    if pairs.rows > SMALL_PAIR_ROWS or classes > SMALL_PAIR_CLASSES:
        return False
    return count * classes < SMALL_ELEMENTS and (not pairs.weighs or count <= SMALL_WEIGHED)


def in_a_band(call: Call) -> Refusal | None:
    """Of CUDA C++ for a batch that is not small."""
    pairs = call.pairs
    if pairs is None:
        return None
    wanted = _at_most(BAND_CLASSES, "classes", call.size)
    if call.modalities != 2 or not {1, 2}.issuperset(pairs.subsets):
        wanted = "two modalities", call.modalities
    elif pairs.divergence != "jsd":
        wanted = "divergence='jsd'", repr(pairs.divergence)
    elif pairs.donors in ("own", "table"):
        kind = "a table" if pairs.donors == "table" else "each modality's own"
        wanted = "cyclic or exhaustive donors that the modalities share", kind
    elif pairs.rows < BAND_ROWS:
        wanted = f"at least {BAND_ROWS} rows", pairs.rows
    elif call.size is not None and pairs.rows * call.size > BAND_ELEMENTS:
        wanted = "at most 2^27 rows times classes", pairs.rows
    elif call.shared is not None and call.shared < BAND_SHARED:
        wanted = f"a GPU whose blocks may have {BAND_SHARED} bytes of shared memory", call.shared
    return wanted and (f"beyond small batches {wanted[0]}", wanted[1])
