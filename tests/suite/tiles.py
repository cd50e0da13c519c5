"""Tiles of Triton's kernels so small that the interpreter's inputs have many."""

import contextlib
from collections.abc import Iterator

import pytest


def every_other_size(*sizes: int) -> bool:
    """In place of what says which batch is small: nothing that is interpreted is large."""
    return sum(sizes) % 2 == 0


@contextlib.contextmanager
def small(block_m: int = 32, block_n: int = 32) -> Iterator[None]:
    """Several tiles of every kernel but the divergences', several bands and panels of them, too."""
    from mcr_fast.kernels import config
    from mcr_fast.kernels.config import TABLE, Config
    from mcr_fast.kernels.contrastive import block_sums, exp_sums, panels

    blocks = {"rows": {"BLOCK_R": 16, "BLOCK_D": 32}, "partial_sums": {"BLOCK_R": 16, "SLOTS": 2}}
    for bits in (16, 32):
        for name, columns in (("similarity", block_n), ("positives", 16)):
            tile = {"BLOCK_M": block_m, "BLOCK_N": columns, "BLOCK_K": 32}
            blocks[f"{name}_{bits}"] = tile
    blocks["reconstruction_loss"] = {"BLOCK_R": 16, "BLOCK_D": 16}
    blocks["gather_add"] = {"BLOCK_R": 16, "BLOCK_H": 16}
    blocks["small_sums"] = {"BLOCK_M": 16, "BLOCK_N": block_n, "BLOCK_K": 32}
    blocks["small_gradient"] = {"BLOCK_M": block_m, "BLOCK_N": 16, "BLOCK_D": 16, "BLOCK_S": 32}
    with pytest.MonkeyPatch.context() as patch:
        for name, tile in blocks.items():
            patch.setitem(TABLE, name, (Config(1, tile, 4),))
        patch.setattr(config, "is_small", every_other_size)
        patch.setattr(config, "is_few", every_other_size)
        patch.setattr(config, "is_small_contrastive", every_other_size)
        patch.setattr(exp_sums, "_BAND_TILES", 1)
        patch.setattr(block_sums, "_PARTIALS", 64)
        patch.setattr(panels, "_PANEL_BYTES", 1 << 13)  # 64 rows of 16 bits
        yield
