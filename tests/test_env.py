"""Loading the library, choosing a backend, and the report that explains both."""

import shutil

import pytest
import torch
from contrastive import needs_library
from programs import run_python

from mcr_fast import backends, env
from mcr_fast.ops._backend import resolve
from mcr_fast.ops.registry import OPS

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


@needs_library
@pytest.mark.parametrize("op", OPS)
def test_library_serves_every_op(op):
    assert resolve(op, None, CPU) == "cpu"
    assert resolve(op, "cpu", CPU) == "cpu"
    assert env.has_kernel(f"{op}_fwd", "CPU")
    assert env.has_kernel(f"{op}_bwd", "CPU")


def test_reference_is_always_there():
    assert resolve("nt_xent", "reference", CPU) == "reference"
    assert resolve("nt_xent", "reference", CUDA) == "reference"


def test_cuda_tensors_take_a_kernel_if_torch_has_cuda():
    assert (resolve("nt_xent", None, CUDA) == "reference") == (torch.version.cuda is None)


def test_unknown_backend_lists_the_known():
    with pytest.raises(ValueError, match=r"'reference', 'cpu', 'triton', 'cuda', got 'gpu'"):
        resolve("nt_xent", "gpu", CPU)


@pytest.mark.skipif(bool(torch.version.cuda), reason="this torch has CUDA")
@pytest.mark.parametrize("backend", ["triton", "cuda"])
def test_missing_backend_names_the_fix(backend):
    with pytest.raises(RuntimeError, match=f"{backend}.*not available for nt_xent.*backend=None"):
        resolve("nt_xent", backend, CPU)


@needs_library
def test_cpu_backend_refuses_tensors_of_another_device():
    with pytest.raises(RuntimeError, match="takes CPU tensors, got tensors on cuda"):
        resolve("nt_xent", "cpu", CUDA)


def test_backends_reports_every_op():
    found = backends()
    assert list(found) == list(OPS)
    for status in found.values():
        assert set(status["serves"]) == {"cpu", "cuda"}
        served = set(status["serves"].values())
        assert not served & set(status["unavailable"])


@needs_library
def test_report():
    result = run_python("-m", "mcr_fast.env", CUDA_VISIBLE_DEVICES="")
    assert result.stderr == ""
    for expected in (torch.__version__, str(env.CPU_LIBRARY), "torch stable ABI 2.10", *OPS):
        assert expected in result.stdout


@pytest.fixture
def _restore_capability():
    before = env.cpu_capability()
    yield
    env.cpu_capability(before)


@needs_library
@pytest.mark.usefixtures("_restore_capability")
@pytest.mark.parametrize("capability", ["portable", "avx2", "avx512"])
def test_capability_can_be_forced(capability):
    try:
        assert env.cpu_capability(capability) == capability
    except RuntimeError as error:
        pytest.skip(str(error).splitlines()[0])
    assert env.cpu_capability() == capability


@needs_library
def test_unknown_capability_lists_the_known():
    with pytest.raises(RuntimeError, match="'sse9' is not available.*portable"):
        env.cpu_capability("sse9")


@pytest.mark.parametrize(("value", "expected"), [("1", True), ("0", False)])
def test_check_flag(monkeypatch, value, expected):
    monkeypatch.setenv("MCR_FAST_CHECK", value)
    assert env.check_enabled() is expected


@needs_library
def test_second_copy_is_not_loaded(tmp_path):
    copy = str(shutil.copy(env.CPU_LIBRARY, tmp_path))
    after = "import pathlib; from mcr_fast._libraries import _load; "
    after += f"print(_load(pathlib.Path({copy!r})))"
    result = run_python("-c", after)
    assert "before this package was imported" in result.stdout

    before = f"import torch; torch.ops.load_library({copy!r}); import mcr_fast; print('alive')"
    result = run_python("-W", "error", "-c", before)
    assert "alive" in result.stdout


def test_old_torch_falls_back():
    code = (
        "import torch; torch.__version__ = '2.9.1'; import mcr_fast; "
        "print(mcr_fast.env.load_error(), mcr_fast.backends()['nt_xent']['serves']['cpu'])"
    )
    result = run_python("-c", code)
    assert "torch 2.9.1 is too old" in result.stdout
    assert "reference" in result.stdout
    assert result.stderr.count("mcr_fast runs without compiled kernels") == 1
