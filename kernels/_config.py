"""Launch configurations: a fixed table per op and size class, so that no step waits for a tuner.

An entry covers sizes up to its `up_to`; the last one of an op covers everything beyond. What the
numbers mean is said beside each table, and why: registers per thread decide, since a tile of
BLOCK_R rows by BLOCK_C classes lives in registers from its first load to its last use.
"""

from typing import NamedTuple


class Config(NamedTuple):
    """One size class of one kernel."""

    up_to: int  # the largest size (classes, or width) that it covers
    blocks: dict[str, int]  # upper-case constexprs of the kernel
    num_warps: int
    num_stages: int = 1

    def launch(self) -> dict[str, int]:
        """What it gives to a launch."""
        return {**self.blocks, "num_warps": self.num_warps, "num_stages": self.num_stages}


# Inline approximations in the inner loops, or Triton's own functions.
PRECISE = False

WEIGHT_ROWS = 256  # of one program that adds up what pairs weigh
SCALE_BLOCK = 4096  # elements of one program that scales a gradient

# By number of classes. The own side holds ten tiles in registers: 8 to 16 elements of each to a
# thread, and one warp to a row as long as that lasts, since sums over more need shared memory.
# The donor side holds less and adds nothing up over classes, so a row can be cut anywhere.
_PAIRS = {
    "pairs_own_side": (
        Config(4, {"BLOCK_R": 64, "BLOCK_C": 4}, num_warps=1),
        Config(8, {"BLOCK_R": 32, "BLOCK_C": 8}, num_warps=1),
        Config(16, {"BLOCK_R": 16, "BLOCK_C": 16}, num_warps=1),
        Config(32, {"BLOCK_R": 8, "BLOCK_C": 32}, num_warps=1),
        Config(64, {"BLOCK_R": 4, "BLOCK_C": 64}, num_warps=1),
        Config(128, {"BLOCK_R": 2, "BLOCK_C": 128}, num_warps=1),
        Config(256, {"BLOCK_R": 1, "BLOCK_C": 256}, num_warps=1),
        Config(512, {"BLOCK_R": 1, "BLOCK_C": 512}, num_warps=1),
        Config(1024, {"BLOCK_R": 1, "BLOCK_C": 1024}, num_warps=2),
        Config(2048, {"BLOCK_R": 1, "BLOCK_C": 2048}, num_warps=4),
        Config(4096, {"BLOCK_R": 1, "BLOCK_C": 4096}, num_warps=8),
        Config(8192, {"BLOCK_R": 1, "BLOCK_C": 8192}, num_warps=16),
    ),
    "pairs_donor_side": (
        Config(8, {"BLOCK_R": 64, "BLOCK_C": 8}, num_warps=1),
        Config(16, {"BLOCK_R": 32, "BLOCK_C": 16}, num_warps=1),
        Config(32, {"BLOCK_R": 16, "BLOCK_C": 32}, num_warps=1),
        Config(64, {"BLOCK_R": 8, "BLOCK_C": 64}, num_warps=1),
        Config(1 << 62, {"BLOCK_R": 4, "BLOCK_C": 128}, num_warps=1),
    ),
}

# Tiles of similarities, by rows of the batch and the bits of its numbers. A tile of 128 x 128 at 8
# warps leaves half the registers, so a second block computes exponentials while the first
# multiplies. A small batch has few tiles: smaller ones give more of them, and less is computed
# beyond its edge. Rows of float32 are split into parts of tf32 in registers, which leaves room for
# half a tile; so do the logarithms of the tiles near the diagonal that hold positives.
_SIMILARITY = {
    "similarity_16": (
        Config(1024, {"BLOCK_M": 64, "BLOCK_N": 64, "BLOCK_K": 64}, num_warps=4, num_stages=3),
        Config(1 << 62, {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64}, num_warps=8, num_stages=3),
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
        Config(256, {"BLOCK_R": 8, "BLOCK_D": 256}, num_warps=4),
        Config(1 << 62, {"BLOCK_R": 2, "BLOCK_D": 1024}, num_warps=4),
    ),
}

TABLE: dict[str, tuple[Config, ...]] = {**_PAIRS, **_SIMILARITY, **_RECONSTRUCTION_LOSS}


def choose(kernel: str, size: int) -> Config:
    """The configuration of a kernel for a size."""
    configs = TABLE[kernel]
    return next((config for config in configs if size <= config.up_to), configs[-1])
