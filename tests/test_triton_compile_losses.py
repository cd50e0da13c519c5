"""The kernels of nt_xent, sup_con and reconstruction_loss, compiled for GPUs that are not here."""

import contextlib
from itertools import product

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import aot
import triton
from aot import TARGETS
from tiers import sample

from mcr_fast.kernels import nt_xent, sup_con
from mcr_fast.kernels import reconstruction_loss as reconstruction
from mcr_fast.kernels.config import TABLE, Config, similarity
from mcr_fast.kernels.contrastive import (
    exp_sums,
    finish,
    order,
    panels,
    rows,
    small_gradient,
    small_rows,
    small_sums,
)

TYPES = {
    "enter_ptr": "*i32",
    "begin_ptr": "*i32",
    "end_ptr": "*i32",
    "order_ptr": "*i64",
    "codes_ptr": "*i64",
    "from_ptr": "*i64",
    "sorted_codes_ptr": "*i64",
    "present_ptr": "*i8",
    "num_present_ptr": "*i64",
    "sum_ptr": "*fp64",
    "loss_ptr": "*fp64",
    "c_ptr": "*fp64",
    "scale": "fp32",
    "temperature": "fp32",
    "log2_scale": "fp32",
    "labels_ptr": "*i64",
    "factor": "fp32",
}
INPUTS = (
    "scaled_ptr",
    "h_ptr",
    "x_ptr",
    "reconstruction_ptr",
    "grad_reconstruction_ptr",
    *(f"{name}{m}_ptr" for name in ("z", "grad_z") for m in range(4)),
)
# what is a multiple of 16 in every launch; the frame of whole tiles sees to it
ALIGNED = ("first_row", "first_col", "panel_cols", "band_rows", "padded_rows", "padded_width")

OVER_ALL_TILES = (exp_sums._exp_sums_kernel, panels._panel_kernel)
OVER_POSITIVES = (
    nt_xent._nt_xent_pairs_kernel,
    nt_xent._nt_xent_positives_kernel,
    sup_con._sup_con_sums_kernel,
    sup_con._sup_con_positives_kernel,
)
BITS = {16: "bf16", 32: "fp32"}


def build(kernel, dtype, config, target, **constexprs):
    # of rows in whole tiles, as they come elsewhere
    whole = "scaled_ptr" in kernel.arg_names and "padded_width" not in kernel.arg_names
    aligned = (*ALIGNED, "width") if whole else ALIGNED
    types = TYPES | dict.fromkeys(INPUTS, f"*{dtype}")
    return aot.build(kernel, config, target, types, aligned=aligned, **constexprs)


def check_tiles(kernel, bits, config, target, running_max):
    compiled = build(
        kernel,
        BITS[bits],
        config,
        target,
        RUNNING_MAX=running_max,
        DOT_PRECISION="tf32x3" if bits == 32 else "ieee",
    )
    assert ("wgmma.mma_async" if target == 90 else "mma.sync") in compiled.ptx
    if kernel is not sup_con._sup_con_sums_kernel:
        assert "ex2.approx.ftz.f32" in compiled.ptx
    assert "ex2.approx.f32" not in compiled.ptx
    assert "div.full" not in compiled.ptx
    assert "div.rn" not in compiled.ptx
    return compiled


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kernel", OVER_ALL_TILES, ids=lambda k: k.__name__)
def test_over_all_tiles(kernel, bits, target):
    for up_to, running_max in product([row.up_to for row in TABLE[f"similarity_{bits}"]], (0, 1)):
        config = similarity(bits, up_to, bool(running_max))
        compiled = check_tiles(kernel, bits, config, target, bool(running_max))
        if target == 90 and up_to == 4096 and not running_max:
            assert compiled.registers <= 128, "one block of these tiles alone has the registers"
        if target == 90 and bits == 16:
            columns = config.blocks["BLOCK_N"]
            assert f"m64n{columns}k16" in compiled.ptx, "a product is cut into narrower ones"


@pytest.mark.parametrize("target", sample(TARGETS, 2))
@pytest.mark.parametrize("bits", sample(BITS, 2))
@pytest.mark.parametrize("kernel", OVER_POSITIVES, ids=lambda k: k.__name__)
def test_over_positives(kernel, bits, target):
    for config in TABLE[f"positives_{bits}"]:
        for running_max in {False, "RUNNING_MAX" in kernel.arg_names}:
            check_tiles(kernel, bits, config, target, running_max)


def test_tiles_fit_into_each_other():
    """What the launchers count on."""
    (sums,) = TABLE["partial_sums"]
    rows = max(config.blocks["BLOCK_R"] for config in TABLE["rows"])
    for bits in BITS:
        for config in TABLE[f"similarity_{bits}"]:
            blocks, sides = config.blocks, (config.blocks["BLOCK_M"], config.blocks["BLOCK_N"])
            assert max(sides) % min(sides) == 0
            assert max(sides) % rows == 0
            assert min(sides) % sums.blocks["BLOCK_R"] == 0
            for near in TABLE[f"positives_{bits}"]:
                assert max(sides) % near.blocks["BLOCK_M"] == 0
                assert max(sides) % near.blocks["BLOCK_N"] == 0
                assert blocks["BLOCK_K"] % near.blocks["BLOCK_K"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_rows_and_sums(target):
    for config in TABLE["rows"]:
        for dtype, top_exponent in (("fp32", 0), ("fp16", 14)):
            options = {"ALL_PRESENT": top_exponent == 0, "PAST_CLASS": top_exponent > 0}
            options["TOP_EXPONENT"] = top_exponent
            build(rows._scale_rows_kernel, dtype, config, target, **options)
            build(rows._project_rows_kernel, dtype, config, target)
    for config, running_max in product(TABLE["partial_sums"], (False, True)):
        tile = similarity(16, 1 << 20, running_max).blocks
        build(
            exp_sums._add_partials_kernel,
            "fp32",
            config,
            target,
            RUNNING_MAX=running_max,
            BLOCK_M=tile["BLOCK_M"],
            BLOCK_N=tile["BLOCK_N"],
        )


@pytest.mark.parametrize("target", sample(TARGETS, 1))
@pytest.mark.parametrize("kind", sample(["NT_XENT", "SUP_CON"], 1))
def test_small_batches(kind, target):
    given = {"KIND": getattr(small_rows, kind).value, "x_col_stride": 1}
    for dtype, precision in (("fp32", "tf32x3"), ("bf16", "tf32")):
        for config in TABLE["small_sums"]:
            sums = small_sums._small_sums_kernel
            compiled = build(sums, dtype, config, target, DOT_PRECISION=precision, **given)
            assert "mma.sync" in compiled.ptx
        for config in TABLE["small_gradient"]:
            build(small_gradient._small_gradient_kernel, dtype, config, target, **given)


@pytest.mark.parametrize("target", sample(TARGETS, 2))
def test_single_programs(target):
    blocks = Config(0, {"BLOCK": order.BLOCK}, num_warps=8)
    build(order._absent_last_kernel, "fp32", blocks, target)
    blocks = Config(0, {"BLOCK": finish.BLOCK}, num_warps=8)
    for over_pairs, given in ((True, {}), (False, {"c_ptr": None}), (True, {"weight_ptr": None})):
        given |= {"OVER_PAIRS": over_pairs, "HALF": over_pairs}
        build(finish._finish_rows_kernel, "fp32", blocks, target, **given)


@pytest.mark.parametrize("target", sample(TARGETS, 2))
def test_reconstruction_loss(target):
    for config in TABLE["reconstruction_loss"]:
        for dtype in ("fp32", "bf16"):
            two = {f"{name}{m}_ptr": None for name in ("z", "grad_z") for m in (2, 3)}
            for given in ({}, two):
                build(
                    reconstruction._reconstruction_loss_fwd_kernel, dtype, config, target, **given
                )
                build(
                    reconstruction._reconstruction_loss_bwd_kernel, dtype, config, target, **given
                )


def test_launchers_read_nothing_back(monkeypatch):
    """Tensors without data go through: no size, branch or loop depends on a number in one."""
    launched = []
    monkeypatch.setattr(triton.runtime.JITFunction, "run", lambda k, **_: launched.append(k))
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    x = torch.empty(5000, 37, device="meta", dtype=torch.float16)
    labels = torch.empty(5000, device="meta", dtype=torch.int64)
    for module, name in ((nt_xent, "nt_xent"), (sup_con, "sup_con")):
        for present in (None, labels > 0):
            forward = getattr(module, f"{name}_fwd")
            loss, grad = forward(x, labels, present, 0.5, True)
            assert grad.shape == x.shape
            getattr(module, f"{name}_bwd")(loss, grad, torch.float16)
    loss = reconstruction.reconstruction_loss_fwd([x, x], torch.cat([x, x], dim=1))
    reconstruction.reconstruction_loss_bwd(loss, [x, x], torch.cat([x, x], dim=1))
    assert len(set(launched)) == 14
    del launched[:]
    for module, name in ((nt_xent, "nt_xent"), (sup_con, "sup_con")):
        for present in (None, labels[:300] > 0):
            getattr(module, f"{name}_fwd")(x[:300], labels[:300], present, 0.5, True)
    assert len(launched) == 8
