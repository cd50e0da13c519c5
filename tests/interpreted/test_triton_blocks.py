"""Triton's kernels of the contrastive losses by blocks, interpreted."""

from dataclasses import replace

import pytest
import torch
from blocks import (
    LOSSES,
    OPS,
    SHAPES,
    bound,
    empty_blocks,
    make_block,
    merged,
    not_a_number,
    unmarked,
)
from divergences import assert_same_bits
from suite import tiles
from suite.cases import pairwise
from tiers import sample

pytestmark = pytest.mark.process("interpreted")
EACH_LOSS = pytest.mark.parametrize("loss", LOSSES)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize(
    ("shape", "dtype", "loss", "temperature"),
    sample((combination for _, combination in pairwise(SHAPES, DTYPES, LOSSES, (0.5, 0.01))), 3),
)
def test_bound(shape, dtype, loss, temperature):
    *sizes, offset = SHAPES[shape]
    given = {"marked": temperature == 0.5, "dtype": dtype, "temperature": temperature}
    with tiles.small():
        bound(make_block(loss, *sizes, offset=offset, **given), "triton")


@EACH_LOSS
@pytest.mark.parametrize("blocks", [(16, 32), (32, 16)])
@pytest.mark.parametrize("dtype", sample(DTYPES, 3))
def test_tiles_and_panels(dtype, blocks, loss):
    with tiles.small(*blocks):
        bound(make_block(loss, 70, 130, 21, 5, offset=40, marked=True, dtype=dtype), "triton")


@EACH_LOSS
def test_the_tiles_of_the_table(loss):
    bound(make_block(loss, 70, 90, 37, 6), "triton")


@EACH_LOSS
@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_marks_and_nan(temperature, loss):
    with tiles.small():
        given = {"temperature": temperature}
        unmarked(make_block(loss, 40, 60, 9, 4, offset=20, marked=True, **given), "triton")
        not_a_number(make_block(loss, 9, 40, 5, 3, offset=2, **given), "triton")
        merged(make_block(loss, 30, 90, 21, 4, offset=50, **given), "triton", 45)


def test_empty():
    empty_blocks("triton")


@EACH_LOSS
def test_repeats_in_any_layout(loss):
    block = make_block(loss, 20, 50, 12, 4, offset=3, marked=True)
    expected = block.run("triton")
    assert_same_bits(block.run("triton"), expected)
    apart = block.map(lambda x: x.repeat_interleave(2, -1)[..., ::2])
    assert_same_bits(apart.run("triton"), expected)


@pytest.mark.parametrize("op", OPS)
def test_opcheck(op):
    block = make_block("nt_xent", 6, 11, 4, 3, offset=2)
    torch.library.opcheck(getattr(torch.ops.mcr_fast, op).triton, block.of(op))


WRONG = {
    "row_codes": {"row_codes": torch.zeros(5, dtype=torch.int64)},
    "column_marks": {"column_marks": torch.ones(6, dtype=torch.bool)},
    "columns": {"columns": torch.zeros(11, 4).half()},
    "offset": {"offset": 6},
    "loss": {"loss": "jsd"},
    "temperature": {"temperature": 0.0},
    "log_sum": {"log_sum": torch.zeros(5)},
    "row_stats": {"row_stats": torch.zeros(2, 5)},
    "column_stats": {"column_stats": torch.zeros(2, 11).double()},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments(name):
    block = replace(make_block("nt_xent", 6, 11, 4, 3), **WRONG[name])
    of_all = name not in ("log_sum", "row_stats", "column_stats")
    for op in OPS if of_all else ("contrastive_pairs",) if name == "log_sum" else OPS[2:]:
        with pytest.raises(ValueError, match=f"{name} must be"):
            getattr(torch.ops.mcr_fast, op).triton(*block.of(op))
