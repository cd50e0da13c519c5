"""Launch configurations: a fixed table per op and size class, so that no step waits for a tuner.

An entry covers sizes up to its `up_to`; the last one of an op covers everything beyond. What the
numbers mean is said beside each table, and why: registers per thread decide, since a tile of
BLOCK_R rows by BLOCK_C classes lives in registers from its first load to its last use.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Config(NamedTuple):
    """One size class of one kernel."""

    up_to: int  # the largest size (classes, or width) that it covers
    blocks: dict[str, int]  # upper-case constexprs of the kernel
    num_warps: int
    num_stages: int = 1
    # Unless told, the assembler stops at 72 to 128 registers in some kernels and spills the rest.
    max_registers: int | None = None

    def launch(self) -> dict[str, int]:
        """What it gives to a launch."""
        options = {"num_warps": self.num_warps, "num_stages": self.num_stages}
        if self.max_registers is not None:
            options["maxnreg"] = self.max_registers
        return {**self.blocks, **options}


MAX_CLASSES = 4096  # of a row that is kept in the registers of one program

# Inline approximations in the inner loops, or Triton's own functions.
PRECISE = False

PROGRAMS = 528  # that keep a GPU busy: four for each of an H100's 132 multiprocessors
WEIGHT_ROWS = 256  # of one program that adds up what pairs weigh
SMALL_ROWS = 256  # a batch that takes no more launches than it must, where they are what it costs
SMALL_SIZE = 1 << 22  # numbers that its own side may leave for its donor side, about
# perturbed rows that every program of row_divergence looks through, so that nothing is sorted, and
# what all of them compare, at most
FEW_ROWS, FEW_COMPARISONS = 4096, 1 << 20
SMALL_CONTRASTIVE = (1024, 4096)  # rows and width of a contrastive batch that counts as small
SCALE_BLOCK = 4096  # elements of one program that scales a gradient


def alignment(num_classes: int) -> int:
    """Elements that a load can join: the power of two, up to 16, that divides the classes."""
    return math.gcd(num_classes, 16)


def parts(tiles: int, num_permutations: int) -> tuple[int, int]:
    """Into how many parts the permutations of `tiles` programs are cut, and how many each has."""
    each = -(-num_permutations // max(1, min(PROGRAMS // tiles, num_permutations)))
    return -(-num_permutations // each), each


def _tile(up_to: int, rows: int, classes: int, num_warps: int) -> Config:
    """A tile in the registers of at most eight warps, which may have all that there are."""
    blocks = {"BLOCK_R": rows, "BLOCK_C": classes}
    return Config(up_to, blocks, num_warps, max_registers=255)


def _pairs_of_row(up_to: int, permutations: int, classes: int, num_warps: int) -> Config:
    """The same, of one row."""
    blocks = {"BLOCK_K": permutations, "BLOCK_C": classes}
    return Config(up_to, blocks, num_warps, max_registers=255)


# By number of classes. The own side holds nine tiles in registers, without gradient five: 8 to 16
# elements of each to a thread, and one warp to a row as long as that lasts, since a sum over more
# goes through shared memory. The donor side holds less and adds nothing up over classes, so that a
# row can be cut anywhere.
_PAIRS = {
    "pairs_own_side": (
        _tile(8, 32, 8, 1),
        _tile(32, 8, 32, 1),
        _tile(64, 4, 64, 1),
        _tile(256, 1, 256, 1),
        _tile(512, 1, 512, 1),
        _tile(1024, 1, 1024, 2),
        _tile(2048, 1, 2048, 4),
        _tile(4096, 1, 4096, 8),
    ),
    "pairs_value": (
        _tile(8, 32, 8, 1),
        _tile(32, 8, 32, 1),
        _tile(64, 4, 64, 1),
        _tile(256, 1, 256, 1),
        _tile(512, 1, 512, 1),
        # half as many warps would spill with Triton 3.6, for rows that are not aligned
        _tile(1024, 1, 1024, 2),
        _tile(2048, 1, 2048, 4),
        _tile(4096, 1, 4096, 8),
    ),
    "pairs_donor_side": (
        _tile(8, 32, 8, 1),
        _tile(32, 8, 32, 1),
        _tile(1 << 62, 4, 64, 1),
    ),
    # of a small batch: permutations of one row by classes, 8 to 16 elements to a thread
    "small_own_side": (
        _pairs_of_row(8, 32, 8, 1),
        _pairs_of_row(32, 32, 32, 4),
        _pairs_of_row(64, 16, 64, 4),
        _pairs_of_row(256, 8, 256, 8),
        _pairs_of_row(512, 8, 512, 8),
        _pairs_of_row(1024, 4, 1024, 8),
        _pairs_of_row(2048, 2, 2048, 8),
        _pairs_of_row(4096, 1, 4096, 8),
    ),
    "small_donor_side": (
        _pairs_of_row(8, 32, 8, 1),
        _pairs_of_row(32, 32, 32, 4),
        _pairs_of_row(1 << 62, 16, 64, 4),
    ),
    # as the own side, which it is but for where rows come from; more warps for up to 512 and for
    # 4096 classes, as it waits for memory
    "row_divergence": (
        _tile(8, 32, 8, 1),
        _tile(32, 8, 32, 1),
        _tile(128, 2, 128, 1),
        _tile(256, 1, 256, 1),
        _tile(512, 1, 512, 2),
        _tile(1024, 1, 1024, 2),
        _tile(2048, 1, 2048, 4),
        _tile(4096, 1, 4096, 8),
    ),
}


def _small_sums(up_to: int, columns: int, num_warps: int) -> Config:
    blocks = {"BLOCK_M": 16, "BLOCK_N": columns, "BLOCK_K": 32}
    return Config(up_to, blocks, num_warps, num_stages=3, max_registers=255)


def _small_gradient(up_to: int, rows: int, num_warps: int) -> Config:
    blocks = {"BLOCK_M": rows, "BLOCK_N": 32, "BLOCK_D": 64, "BLOCK_S": 256}
    return Config(up_to, blocks, num_warps, num_stages=2, max_registers=255)


# Tiles of similarities, by rows of the batch and the bits of its numbers. One of 128 x 256 makes 85
# multiplications and additions of each byte that it reads from the L2 cache, one of 128 x 128 makes
# 64, and both wait for that cache; the larger one takes all registers of a multiprocessor. The
# smaller, at 8 warps, leaves half of them, so a second block computes exponentials while the first
# multiplies; up to 4096 rows there are too few tiles for less. Still fewer rows take smaller ones,
# and less is computed beyond the batch's edge. Rows of float32 are split into parts of tf32 in
# registers, which leaves room for half a tile; so do the logarithms of the tiles near the diagonal
# that hold positives.
_SIMILARITY = {
    "similarity_16": (
        Config(1024, {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}, num_warps=4, num_stages=3),
        Config(4096, {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, num_warps=8, num_stages=3),
        Config(1 << 62, {"BLOCK_M": 128, "BLOCK_N": 256, "BLOCK_K": 64}, num_warps=8, num_stages=3),
    ),
    "similarity_32": (
        Config(1024, {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}, num_warps=4, num_stages=3),
        Config(1 << 62, {"BLOCK_M": 128, "BLOCK_N": 64, "BLOCK_K": 32}, num_warps=8, num_stages=3),
    ),
    # BLOCK_M, BLOCK_N and BLOCK_K divide those of the tiles above
    "positives_16": (
        Config(1 << 62, {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 32}, num_warps=4, num_stages=3),
    ),
    "positives_32": (
        Config(1 << 62, {"BLOCK_M": 64, "BLOCK_N": 32, "BLOCK_K": 32}, num_warps=4, num_stages=3),
    ),
    # Of a small batch, whose rows are split into parts of tf32 too. A program of the sums has its
    # rows alone, so few rows give many programs; the gradient is cut along the width as well.
    "small_sums": (_small_sums(256, 32, 4), _small_sums(1 << 62, 64, 8)),
    "small_gradient": (_small_gradient(256, 16, 4), _small_gradient(1 << 62, 32, 8)),
    # of a batch's rows on their way in and out, by width: they wait for memory
    "rows": (
        Config(128, {"BLOCK_R": 16, "BLOCK_D": 64}, num_warps=4),
        Config(1 << 62, {"BLOCK_R": 4, "BLOCK_D": 512}, num_warps=4),
    ),
    # BLOCK_R divides both sides of every tile above
    "partial_sums": (Config(1 << 62, {"BLOCK_R": 64, "SLOTS": 16}, num_warps=4),),
}

# Tiles of 2048 elements by width, each read once: 16 to a thread, of two inputs.
_RECONSTRUCTION_LOSS = {
    "reconstruction_loss": (
        Config(64, {"BLOCK_R": 32, "BLOCK_D": 64}, num_warps=4),
        # unless told, the assembler stops at 80 registers with Triton 3.6 and spills 16 bytes
        Config(256, {"BLOCK_R": 8, "BLOCK_D": 256}, num_warps=4, max_registers=128),
        Config(1 << 62, {"BLOCK_R": 2, "BLOCK_D": 1024}, num_warps=4),
    ),
}

# Tiles of 1024 elements by hidden width: 8 to a thread, the 16 bytes of one load of bfloat16.
_GATHER_ADD = {
    "gather_add": (
        Config(32, {"BLOCK_R": 32, "BLOCK_H": 32}, num_warps=4, max_registers=128),
        Config(128, {"BLOCK_R": 8, "BLOCK_H": 128}, num_warps=4, max_registers=128),
        Config(1 << 62, {"BLOCK_R": 2, "BLOCK_H": 512}, num_warps=4, max_registers=128),
    ),
}

TABLE: dict[str, tuple[Config, ...]] = {
    **_PAIRS,
    **_SIMILARITY,
    **_RECONSTRUCTION_LOSS,
    **_GATHER_ADD,
}


def is_small(num_subsets: int, num_rows: int, num_permutations: int, num_classes: int) -> bool:
    """Whether a batch of pairs is what `SMALL_ROWS` says."""
    size = num_subsets * num_rows * (num_classes + num_permutations)
    return num_rows <= SMALL_ROWS and size <= SMALL_SIZE


def is_small_contrastive(num_rows: int, width: int) -> bool:
    """Whether a contrastive batch is what `SMALL_CONTRASTIVE` says."""
    return num_rows <= SMALL_CONTRASTIVE[0] and width <= SMALL_CONTRASTIVE[1]


def similarity(bits: int, num_rows: int, running_max: bool) -> Config:
    """Of a batch's tiles; rows' own maxima take registers that the largest ones do not have."""
    return choose(f"similarity_{bits}", min(num_rows, 4096) if running_max else num_rows)


def own_side(num_classes: int, want_grad: bool, divergence: str) -> Config:
    """Of the rows' side; the two outcomes of a class take twice the registers of one."""
    chosen = choose("pairs_own_side" if want_grad else "pairs_value", num_classes)
    if divergence != "binary_jsd" or num_classes <= 256:
        return chosen
    warps = 2 * chosen.num_warps
    return chosen._replace(num_warps=warps, max_registers=min(255, 2048 // warps))


def small_own_side(num_classes: int, divergence: str) -> Config:
    """Of a small batch's rows; with two outcomes a class, half as many pairs at once."""
    chosen = choose("small_own_side", num_classes)
    permutations = chosen.blocks["BLOCK_K"]
    if divergence != "binary_jsd" or num_classes <= 256:
        return chosen
    if permutations == 1:
        return chosen._replace(num_warps=2 * chosen.num_warps, max_registers=128)
    return chosen._replace(blocks=chosen.blocks | {"BLOCK_K": permutations // 2})


def held_rows(num_classes: int, divergence: str) -> Config:
    """Of row_divergence; the two outcomes of a class take twice the registers of one."""
    chosen = choose("row_divergence", num_classes)
    if divergence != "binary_jsd" or not 512 < num_classes <= 2048:
        return chosen
    return chosen._replace(num_warps=2 * chosen.num_warps)


def is_few(num_perturbed: int, num_clean: int) -> bool:
    """Whether a batch of row_divergence is what `FEW_ROWS` says."""
    return num_perturbed <= FEW_ROWS and num_perturbed * num_clean <= FEW_COMPARISONS


def rows_at_once(chosen: Config) -> int:
    """Rows that a program looks through at once: up to 16 comparisons to a thread."""
    return max(16, min(128, 512 * chosen.num_warps // chosen.blocks["BLOCK_R"]))


def choose(kernel: str, size: int) -> Config:
    """The configuration of a kernel for a size."""
    configs = TABLE[kernel]
    return next((config for config in configs if size <= config.up_to), configs[-1])
