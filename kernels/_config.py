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


TABLE: dict[str, tuple[Config, ...]] = {}


def choose(kernel: str, size: int) -> Config:
    """The configuration of a kernel for a size."""
    configs = TABLE[kernel]
    return next((config for config in configs if size <= config.up_to), configs[-1])
