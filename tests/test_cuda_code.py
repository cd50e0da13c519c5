"""The CUDA library, the GPU and the driver: what has code for whom, and who serves then."""

import functools
import re
from pathlib import Path

import pytest
import torch
from programs import ROOT

from mcr_fast import _cuda_code
from mcr_fast._cuda_code import below_floor, cuda_record, driver_cuda, floor_of, served_by
from mcr_fast.env import _facts
from mcr_fast.ops import _backend
from mcr_fast.ops._limits import Call, Pairs

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PAGE = ROOT / "docs/clusters.md"
needs_pages = pytest.mark.skipif(not PAGE.is_file(), reason="the source tree is not here")
WHEEL = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "compute_120"]


def call_of(rows: int, classes: int) -> Call:
    pairs = Pairs(rows, 32, (1, 2), "jsd", "cyclic", weighs=False)
    return Call(classes, modalities=2, pairs=pairs)


BAND, SMALL = call_of(4096, 1000), call_of(32, 6)


@pytest.fixture
def _all_here(monkeypatch):
    """As with Triton and the CUDA library."""
    monkeypatch.setitem(_backend._UNAVAILABLE, "permuted_divergence", {})


@pytest.mark.parametrize(
    ("capability", "expected"),
    [("7.0", None), ("7.5", "sm_75"), ("8.7", None), ("9.0", "sm_90"), ("12.1", "sm_120")],
)
def test_architecture_of_a_gpu(capability, expected):
    assert served_by(capability, WHEEL, "12.8", "13.0") == expected


def test_ptx_needs_a_driver_that_knows_the_toolkit():
    assert served_by("13.0", WHEEL, "12.8", "12.8") == "compute_120"
    assert served_by("13.0", WHEEL, "12.8", "12.4") is None
    assert served_by("13.0", WHEEL, "12.8", None) == "compute_120"
    assert served_by("9.0", ["sm_90a", "compute_80"], None, None) == "sm_90a"
    assert served_by("10.0", ["sm_90a", "compute_80"], None, None) == "compute_80"
    assert served_by("10.3", ["sm_100f"], None, None) == "sm_100f"
    assert served_by("9.0", None, None, None) is None


@pytest.mark.parametrize(
    ("toolkit", "release", "cuda", "expected"),
    [
        ("13.0", "550.54.15", "12.4", True),
        ("12.9", "550.54.15", "12.4", False),
        ("12.9", "525.60.13", None, False),
        ("12.9", "470.57.02", None, True),
        ("13.0", None, None, False),
        ("12.8", None, "13.0", False),
        ("99.0", "580.65", None, False),
    ],
)
def test_driver_floor(toolkit, release, cuda, expected):
    assert below_floor(toolkit, release, cuda) is expected


@needs_pages
def test_floors_are_those_of_the_page():
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    for major, release in re.findall(r"^\| CUDA (\d+)\.x \| (\d+) \|$", page, re.MULTILINE):
        assert floor_of(f"{major}.1") == (f"{major}.0", release)


class Driver:
    """libcuda, as far as it is asked."""

    def __init__(self, status: int, number: int) -> None:
        self.status, self.number = status, number

    def cuDriverGetVersion(self, out) -> int:
        out._obj.value = self.number
        return self.status


@pytest.mark.parametrize(
    ("status", "number", "expected"), [(0, 12040, "12.4"), (0, 13000, "13.0"), (3, 12040, None)]
)
def test_cuda_of_the_driver(monkeypatch, status, number, expected):
    monkeypatch.setattr(_cuda_code.ctypes, "CDLL", lambda name: Driver(status, number))
    assert driver_cuda() == expected


def test_no_driver_at_all(monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(_cuda_code.ctypes, "CDLL", missing)
    assert driver_cuda() is None


@needs_pages
def test_record_of_a_cuda_library(tmp_path):
    """In the words of the source that writes it."""
    source = (ROOT / "csrc/cuda_record.cpp").read_text()
    (words,) = re.findall(r'"(mcr_fast CUDA library: .*);', source)
    words = words.replace('" MCR_TEXT(CUDART_VERSION) "', "12090")
    words = words.replace('" MCR_CUDA_ARCHITECTURES', "75-real 90 120-real 120-virtual")
    path = tmp_path / "x.so"
    path.write_bytes(b"\x7fELF..." + words.encode() + b"\0rest")
    held = ["sm_75", "sm_90", "compute_90", "sm_120", "compute_120"]
    assert cuda_record(path) == ("12.9", held)
    path.write_bytes(path.read_bytes().replace(b"75-real 90 120-real 120-virtual", b"native"))
    assert cuda_record(path) is None


class Properties:
    """What `torch.cuda.get_device_properties` returns."""


def see_gpu(monkeypatch, bytes_of_a_block=227 << 10, capability=(9, 0)):
    """As though torch saw one GPU."""
    # a constant to the compiler, as torch's own, which a torch with CUDA does not let others make
    torch._dynamo.utils.common_constant_types.add(Properties)
    card = Properties()
    card.shared_memory_per_block_optin, (card.major, card.minor) = bytes_of_a_block, capability
    here = {"is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0}
    of_a_compiler = {"get_rng_state": None, "set_rng_state": None, "_lazy_init": None}
    for name, value in {**here, **of_a_compiler, "_get_device_properties": card}.items():
        answer = functools.partial(lambda value, *_: value, value)
        monkeypatch.setattr(torch.cuda, name, answer, raising=False)


@pytest.mark.usefixtures("_all_here")
@pytest.mark.parametrize(
    ("bytes_of_a_block", "expected"), [(99 << 10, "triton"), (163 << 10, "cuda")]
)
def test_the_gpu_is_asked_for_its_shared_memory(bytes_of_a_block, expected, monkeypatch):
    """Compiled too, without a break of the graph."""
    see_gpu(monkeypatch, bytes_of_a_block=bytes_of_a_block)
    assert _backend.shared_memory(CPU) is None

    def chosen(x):
        call = BAND._replace(shared=_backend.shared_memory(CUDA))
        return x * (_backend.resolve("permuted_divergence", None, CUDA, call=call) == "cuda")

    torch._dynamo.reset()
    for run in (chosen, torch.compile(chosen, fullgraph=True, backend="eager")):
        assert run(torch.ones(())) == (expected == "cuda")


@pytest.mark.usefixtures("_all_here")
@pytest.mark.parametrize(
    ("capability", "served"), [((7, 0), False), ((8, 6), True), ((9, 0), True), ((12, 1), True)]
)
def test_a_gpu_without_code_in_the_library_goes_to_triton(capability, served, monkeypatch):
    """Such as a V100 and a wheel from Turing on; compiled too, without a break of the graph."""
    see_gpu(monkeypatch, capability=capability)
    monkeypatch.setattr(_backend, "_CAPABILITIES", None)
    assert _backend.resolve("permuted_divergence", None, CUDA, call=SMALL) == "cuda"
    record = ("12.9", ["sm_75", "sm_80", "sm_90", "sm_120", "compute_120"])
    monkeypatch.setattr(_cuda_code, "cuda_record", lambda path: record)
    monkeypatch.setattr(_cuda_code, "driver_cuda", lambda: "12.9")
    found = _cuda_code.capabilities_served(Path("libmcr_fast_cuda.so"))
    monkeypatch.setattr(_backend, "_CAPABILITIES", found)

    def chosen(x):
        return x * (_backend.resolve("permuted_divergence", None, CUDA, call=SMALL) == "cuda")

    torch._dynamo.reset()
    for run in (chosen, torch.compile(chosen, fullgraph=True, backend="eager")):
        assert run(torch.ones(())) == served
    other = _backend.resolve("permuted_divergence", None, CUDA, call=SMALL)
    assert other == ("cuda" if served else "triton")
    if not served:
        with pytest.raises(RuntimeError, match="has no code for cuda under this driver"):
            _backend.resolve("permuted_divergence", "cuda", CUDA, call=SMALL)
    why_not = _facts._why_not_faster("permuted_divergence", "cuda", other, {})
    assert bool(why_not) == (not served)
    monkeypatch.setattr(_cuda_code, "driver_cuda", lambda: "11.8")
    assert _cuda_code.capabilities_served(Path("libmcr_fast_cuda.so")) == frozenset()
