"""The kernels of the contrastive losses by blocks, compiled for GPUs that are not here."""

import contextlib
from itertools import product

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import aot
import triton
from aot import TARGETS
from tiers import sample

from mcr_fast.kernels import contrastive_blocks
from mcr_fast.kernels.config import TABLE, Config, similarity
from mcr_fast.kernels.contrastive import block, block_panels, block_sums

BITS = {16: "bf16", 32: "fp32"}
INTEGERS = ("begin_ptr", "end_ptr", "own_ptr")
LONGS = ("order_ptr", "codes_ptr", "column_codes_ptr", "column_order_ptr")
TYPES = {
    **dict.fromkeys(INTEGERS, "*i32"),
    **dict.fromkeys((*LONGS, "num_present_ptr", "num_columns_ptr"), "*i64"),
    "total_ptr": "*fp64",
    "scale": "fp32",
}
# what is a multiple of 16 in every launch; the frame of whole tiles sees to it
ALIGNED = ("first_row", "first_col", "panel_cols", "padded_rows", "padded_columns", "padded_width")


def build(kernel, bits, config, target, **constexprs):
    inputs = dict.fromkeys(("scaled_ptr", "col_scaled_ptr", "h_ptr"), f"*{BITS[bits]}")
    whole = "scaled_ptr" in kernel.arg_names  # rows in whole tiles
    aligned = (*ALIGNED, "width") if whole else ALIGNED
    constexprs |= {"DOT_PRECISION": "tf32x3" if bits == 32 else "ieee"}
    compiled = aot.build(kernel, config, target, TYPES | inputs, aligned=aligned, **constexprs)
    if whole:
        assert ("wgmma.mma_async" if target == 90 else "mma.sync") in compiled.ptx
        assert "div.full" not in compiled.ptx
        assert "div.rn.f32" not in compiled.ptx
    return compiled


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", BITS)
def test_over_all_tiles(bits, target):
    for up_to, running_max in product([row.up_to for row in TABLE[f"similarity_{bits}"]], (0, 1)):
        config = similarity(bits, up_to, bool(running_max))
        given = {"RUNNING_MAX": bool(running_max)}
        compiled = [
            build(block_panels._block_panel_kernel, bits, config, target, h_scale_ptr=None, **given)
        ]
        for past_class in (True, False):
            sums = block_sums._block_sums_kernel
            compiled.append(build(sums, bits, config, target, PAST_CLASS=past_class, **given))
        if target == 90 and bits == 16 and up_to <= 4096 and not running_max:
            assert all(c.registers <= 128 for c in compiled), "two blocks do not fit beside another"


@pytest.mark.parametrize("target", sample(TARGETS, 2))
@pytest.mark.parametrize("bits", sample(BITS, 2))
def test_over_positives(bits, target):
    for config in TABLE[f"positives_{bits}"]:
        for none in ({}, {"log_sum_ptr": None, "log_weight_ptr": None}):
            build(block_sums._block_pairs_kernel, bits, config, target, **none)
        for over_pairs, running_max in product((True, False), repeat=2):
            given = {"OVER_PAIRS": over_pairs, "RUNNING_MAX": running_max, "h_scale_ptr": None}
            build(block_panels._block_positives_kernel, bits, config, target, **given)


@pytest.mark.parametrize("target", sample(TARGETS, 2))
def test_rows(target):
    look_up = Config(0, {"BLOCK": block.BLOCK}, num_warps=4)
    build(block._classes_kernel, 32, look_up, target)
    for over_pairs, running_max in product((True, False), repeat=2):
        given = {"OVER_PAIRS": over_pairs, "RUNNING_MAX": running_max}
        build(block_panels._statistics_kernel, 32, look_up, target, **given)
        one = Config(0, {"BLOCK": 1024}, num_warps=8)
        build(block_panels._half_scale_kernel, 32, one, target, **given)
    for config in TABLE["rows"]:
        build(block_panels._unsort_kernel, 32, config, target, h_scale_ptr=None)
    for config, running_max in product(TABLE["partial_sums"], (False, True)):
        given = {"RUNNING_MAX": running_max, "BLOCK_N": 128}
        build(block_sums._log_sums_kernel, 32, config, target, **given)


def test_launchers_read_nothing_back(monkeypatch):
    """Tensors without data go through: no size, branch or loop depends on a number in one."""
    launched = []
    monkeypatch.setattr(triton.runtime.JITFunction, "run", lambda k, **_: launched.append(k))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    rows, columns = (torch.empty(n, 37, device="meta", dtype=torch.float16) for n in (1000, 5000))
    codes = [torch.empty(len(x), device="meta", dtype=torch.int64) for x in (rows, columns)]
    stats = [torch.empty(2, len(x), device="meta") for x in (rows, columns)]
    for loss, marked in product(("nt_xent", "sup_con"), (False, True)):
        marks = [c > 0 if marked else None for c in codes]
        given = (rows, codes[0], marks[0], columns, codes[1], marks[1], 4000, loss)
        sums = contrastive_blocks.contrastive_sums(*given, 0.5)
        contrastive_blocks.contrastive_pairs(*given, sums, 0.5)
        grad = contrastive_blocks.contrastive_gradient(*given, *stats, 0.5)
        assert grad.shape == rows.shape
    assert len(set(launched)) == 11
