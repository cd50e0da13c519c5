"""The Triton overloads of the ops: schemas, who is chosen, what is said when they cannot run."""

import functools
import importlib.util

import pytest
import torch
from contrastive import needs_library
from programs import ROOT, run_python

from mcr_fast import env
from mcr_fast.ops import _backend, registry
from mcr_fast.ops.registry import OPS, schemas, with_kernels

SCHEMAS = schemas()
TRITON_OPS = with_kernels("triton")

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@needs_library
@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_is_that_of_the_library(name):
    compiled = getattr(torch.ops.mcr_fast, name).default._schema
    assert str(torch._C.parse_schema(f"mcr_fast::{name}{SCHEMAS[name]}")) == str(compiled)


@pytest.mark.parametrize("op", TRITON_OPS)
def test_overload_has_fake_and_kernels(op):
    assert (ROOT / "kernels" / f"{op}.py").exists()
    for name in (f"mcr_fast::{op}_fwd.triton", f"mcr_fast::{op}_bwd.triton"):
        for key in ("CUDA", "Autograd"):
            assert torch._C._dispatch_has_kernel_for_dispatch_key(name, key)


def test_each_kernel_stands_in_the_registry():
    stems = {path.stem for path in (ROOT / "kernels").glob("[a-z]*.py")}
    assert set(TRITON_OPS) <= stems
    assert stems & set(OPS) == set(TRITON_OPS)


TOYS = """
import torch
import mcr_fast
from mcr_fast.ops import _backend
from mcr_fast.ops._dispatch import register
from mcr_fast.ops.registry import OPS, Op

for op, backends in {"toy": (), "triton": ("triton",), "all": ("cpu", "triton", "cuda")}.items():
    OPS[op] = Op("(Tensor x) -> Tensor", "(Tensor grad, Tensor x) -> Tensor", backends=backends)
    _backend._UNAVAILABLE[op] = _backend._why_unavailable(op)  # as its import does for each row
    register(
        op,
        differentiable=1,
        forward_fake=torch.empty_like,
        backward_fake=lambda grad, x: torch.empty_like(x),
        setup=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
        backward=lambda ctx, run, grad: (run(grad, *ctx.saved_tensors),),
    )
    print(mcr_fast.backends()[op]["serves"]["cpu"], end=" ")
    print(_backend.resolve(op, None, torch.device("cpu")), op in mcr_fast.env.report())
"""


def test_a_row_is_all_that_an_op_needs_to_be_known():
    """Without a kernel too: an op may begin with its reference."""
    assert run_python("-c", TOYS).stdout == "reference reference True\n" * 3


@pytest.fixture
def _on_cuda(monkeypatch):
    """As with a torch built for CUDA and Triton installed; an op's kernel is not called."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    found = {op: _backend._why_unavailable(op) for op in OPS}
    monkeypatch.setattr(_backend, "_UNAVAILABLE", found)


needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)


@needs_triton
@pytest.mark.usefixtures("_on_cuda")
@pytest.mark.parametrize("op", TRITON_OPS)
def test_cuda_tensors_take_triton(op):
    assert _backend.resolve(op, None, CUDA, torch.float16) == "triton"
    assert _backend.resolve(op, "triton", CUDA) == "triton"
    assert _backend.backends()[op]["serves"]["cuda"] == "triton"
    with pytest.raises(RuntimeError, match="takes CUDA tensors, got tensors on cpu.*INTERPRET"):
        _backend.resolve(op, "triton", CPU)


@needs_triton
@pytest.mark.usefixtures("_on_cuda")
@pytest.mark.parametrize("op", TRITON_OPS)
def test_float64_goes_to_the_reference(op):
    assert _backend.resolve(op, None, CUDA, torch.float64) == "reference"
    with pytest.raises(RuntimeError, match="computes in float32, got float64"):
        _backend.resolve(op, "triton", CUDA, torch.float32, torch.float64)


@needs_triton
@pytest.mark.usefixtures("_on_cuda")
def test_too_many_classes_go_to_the_reference():
    limit = OPS["row_divergence"].max_classes["triton"]
    chosen = functools.partial(_backend.resolve, "row_divergence")
    assert chosen(None, CUDA, torch.float32, size=limit) == "triton"
    assert chosen(None, CUDA, torch.float32, size=limit + 1) == "reference"
    with pytest.raises(ValueError, match=f"at most {limit} classes, got {limit + 1}"):
        chosen("triton", CUDA, torch.float32, size=limit + 1)


@pytest.mark.usefixtures("_on_cuda")
def test_choice_by_classes(monkeypatch):
    op = "row_divergence"
    order = ((28, ("cuda", "triton")), (None, ("triton", "cuda")))
    monkeypatch.setitem(registry.CHOICE, op, order)
    monkeypatch.setitem(_backend._UNAVAILABLE, op, {})

    def chosen(classes: int | None, dtype: torch.dtype = torch.float32) -> str:
        return _backend.resolve(op, None, CUDA, dtype, size=classes)

    assert [chosen(c) for c in (6, 28, 29, 4096)] == ["cuda"] * 2 + ["triton"] * 2
    assert chosen(4097, torch.bfloat16) == "cuda"  # more than Triton's kernels take
    assert chosen(65537) == "reference"
    assert chosen(6, torch.float64) == "reference"
    assert chosen(6) == chosen(None)
    monkeypatch.setitem(_backend._UNAVAILABLE, op, {"cuda": "not here"})
    assert chosen(6) == "triton"


def test_choice_names_ops_and_ends():
    assert {key.removesuffix(" 16-bit") for key in registry.CHOICE} <= set(TRITON_OPS)
    for rows in (registry.NOT_MEASURED, *registry.CHOICE.values()):
        bounds = [most for most, _ in rows]
        assert bounds[-1] is None
        assert bounds[:-1] == sorted(bounds[:-1])
        assert all(set(order) == {"triton", "cuda"} for _, order in rows)


@pytest.mark.skipif(bool(torch.version.cuda), reason="this torch has CUDA")
@pytest.mark.parametrize("op", TRITON_OPS)
def test_torch_without_cuda(op):
    if importlib.util.find_spec("triton") is not None:
        with pytest.raises(RuntimeError, match="not built for CUDA.*TRITON_INTERPRET=1"):
            _backend.resolve(op, "triton", CPU)
    assert _backend.resolve(op, None, CUDA) == "reference"


def test_triton_missing(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install triton" in str(env.why_no_triton())


@needs_triton
def test_interpreter_takes_cpu_tensors_when_asked():
    code = (
        "import sys, torch; from mcr_fast.ops._backend import resolve; cpu = torch.device('cpu');"
        f"ops = {list(TRITON_OPS)};"
        "print({resolve(op, 'triton', cpu) for op in ops} == {'triton'},"
        "'triton' in {resolve(op, None, cpu) for op in ops}, 'triton' in sys.modules)"
    )
    result = run_python("-c", code, TRITON_INTERPRET="1")
    assert result.stdout.split() == ["True", "False", "False"]
