"""The kernels of the perturbed hidden rows, compiled for GPUs that are not here."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed")

import aot
import triton
from aot import TARGETS
from tiers import sample

from mcr_fast.kernels import gather_add as kernels
from mcr_fast.kernels.config import TABLE

POINTERS = {
    "donors_ptr": "*i64",
    "inverse_ptr": "*i64",
    "kept_ptr": "*i8",
    "hidden_ptr": "*fp32",
    "sums_ptr": "*fp32",
    "total_ptr": "*fp32",
}


def build(kernel, config, dtype, target, **constexprs):
    exact = constexprs.get("ACTIVATION") == kernels.GELU.value
    library, aligned = ("__nv_erff",) if exact else (), ("width",)
    compiled = aot.build(
        kernel, config, target, POINTERS, f"*{dtype}", aligned, library, **constexprs
    )
    in_loops = [text for loop in compiled.loops() for text in loop]
    assert in_loops
    assert not any(t.startswith("STS") for t in in_loops), "rows pass through shared memory"
    return compiled


# every tile with the activation that takes most registers, the widest with the others
ROWS = [(config, 90, "gelu") for config in TABLE["gather_add"]]
ROWS += [(ROWS[-1][0], 90, name) for name in ("none", "relu", "gelu_tanh")]
ROWS += [(ROWS[-1][0], 80, name) for name in ("none", "gelu")]


@pytest.mark.parametrize(("config", "target", "activation"), sample(ROWS, len(ROWS)))
def test_rows(config, target, activation):
    plain = {"ACTIVATION": kernels.ACTIVATIONS[activation], "OWN_DONORS": False, "SINGLE": True}
    general = plain | {"OWN_DONORS": True, "SINGLE": False}
    kernel = kernels._gather_add_rows_kernel
    backward = {"out_ptr": None} if activation == "none" else {}
    for no_rows in ({"grad_ptr": None, "sums_ptr": None}, backward):
        compiled = build(kernel, config, "bf16", target, **plain, **no_rows, kept_ptr=None)
        # the library's erf has one too
        assert ("ex2.approx.ftz.f32" in compiled.ptx) == activation.startswith("gelu")
        assert "ld.global.v4" in compiled.ptx, "16 bytes a load"
        build(kernel, config, "fp32", target, **general, **no_rows)


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_donor_side(target):
    for config in TABLE["gather_add"]:
        for dtype, own_donors in (("bf16", False), ("fp32", True)):
            kernel = kernels._gather_add_donor_side_kernel
            compiled = build(kernel, config, dtype, target, OWN_DONORS=own_donors)
            assert "ld.global.v4" in compiled.ptx, "16 bytes a load"
            assert "atom." not in compiled.ptx


def test_launchers_read_nothing_back(monkeypatch):
    """Tensors without data go through: no size, branch or loop depends on a number in one."""
    launched = []
    monkeypatch.setattr(triton.runtime.JITFunction, "run", lambda k, **_: launched.append(k))
    x = torch.empty(2, 500, 300, device="meta", dtype=torch.bfloat16)
    hidden = torch.empty(500, 300, device="meta")
    donors = torch.empty(1, 4, 500, device="meta", dtype=torch.int64)
    kept = torch.empty(2000, device="meta", dtype=torch.bool)
    inputs = (x, hidden, donors, kept, 0b01, 0, 500, "gelu")
    rows = kernels.gather_add_fwd(*inputs, torch.bfloat16)
    assert (rows.shape, rows.dtype) == ((2000, 300), torch.bfloat16)
    sums = kernels.gather_add_bwd(rows, *inputs, donors, torch.empty(x.shape, device="meta"))
    assert (sums.shape, sums.dtype) == ((500, 300), torch.float32)
    assert len(launched) == 3
