"""`python -m mcr_fast.env` on this machine, and on machines that are made up."""

import json
import os
import re
import stat
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from typing import get_args, get_type_hints

import pytest
import torch
from contrastive import needs_library
from programs import ROOT

from mcr_fast import env
from mcr_fast._cuda_code import cuda_record
from mcr_fast.env import _elf, _facts, _machine
from mcr_fast.env._command import as_json
from mcr_fast.env._reasons import reasons
from mcr_fast.env._text import COLUMNS, text_of
from mcr_fast.ops.registry import OPS

PAGE = ROOT / "docs/api/backends.md"
needs_pages = pytest.mark.skipif(not PAGE.is_file(), reason="the source tree is not here")
WHEEL = ["sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120", "compute_120"]


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, whatever its exit status."""
    return subprocess.run(
        [sys.executable, "-m", "mcr_fast.env", *arguments],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def served(backend: str, **why: str) -> _facts.Served:
    return _facts.Served(backend, why)


@pytest.fixture(scope="module")
def node() -> _facts.Facts:
    """A node on which all is well: Linux, a wheel with both libraries, an H100, driver 550."""
    return _facts.Facts(
        package=_facts.Package(
            *("0.1.0", "/env/site-packages/mcr_fast", "wheel", "py3-none-manylinux_2_28_x86_64"),
            ["libmcr_fast_cpu.so", "libmcr_fast_cuda.so"],
        ),
        python=_facts.Python("3.12.1", "CPython", "Linux", "x86_64", "Linux-4.18-x86_64"),
        glibc=_facts.Glibc("2.28", {"libmcr_fast_cpu.so": "2.27", "libmcr_fast_cuda.so": "2.17"}),
        torch=_facts.Torch("2.13.0+cu128", "12.8", "525", True, None),
        cpu=_facts.Cpu(
            *(True, "/env/site-packages/mcr_fast/lib/libmcr_fast_cpu.so", None),
            *("gcc 12.2.0; torch stable ABI 2.10; cpu: portable, avx2, avx512", "avx512", "avx512"),
            *(16, 16),
        ),
        driver=_facts.Driver("550.54.15", "12.4"),
        gpus=[_facts.Gpu("H100", "9.0", "sm_90")] * 4,
        cuda=_facts.Cuda(True, True, None, "12.8", "525", WHEEL),
        triton=_facts.Triton("3.6.0", None, None),
        variables={},
        ops={op: {"cpu": served("cpu"), "cuda": served("triton")} for op in OPS},
    )


def ids(facts: _facts.Facts, *required: str) -> list[str]:
    return [reason.id for reason in reasons(facts, required)]


def test_all_is_well(node):
    assert ids(node) == ids(node, "cpu") == ids(node, "cuda", "triton", "cpu") == []


NO_TORCH = {"torch": _facts.Torch("2.13.0+cpu", None, None, False, None)}
NO_GPU = {"gpus": [], "driver": _facts.Driver(None, None)}
BLIND = {"torch": _facts.Torch("2.13.0+cu130", "13.0", "580", False, "too old")}
PURE = {
    "cpu": _facts.Cpu(False, None, "lib/libmcr_fast_cpu.so does not exist", *[None] * 3, 1, 1),
    "cuda": _facts.Cuda(False, False, "no compiled library", None, None, None),
}
OLD_GPU = {"gpus": [_facts.Gpu("V100", "7.0", None)]}
NO_CUDA = {"cuda": _facts.Cuda(False, False, "does not exist", None, None, None)}
BROKEN = {"cuda": _facts.Cuda(True, False, "cannot be loaded", "12.8", "525", WHEEL)}
CUDA_13 = {"cuda": _facts.Cuda(True, True, None, "13.0", "580", WHEEL)}

MACHINES = {  # what differs from the node -> the reasons of a bare call, and those of --require
    "a login node": (NO_GPU | {"torch": _facts.Torch("2.13", "12.8", "525", False, None)}, [], {
        "cpu": [], "cuda": ["no-gpu"], "triton": ["no-gpu"],
    }),
    "CPU torch, no GPU": (NO_TORCH | NO_GPU, [], {
        "cpu": [], "cuda": ["torch-without-cuda"], "triton": ["torch-without-cuda"],
    }),
    "CPU torch beside a GPU": (NO_TORCH, ["torch-without-cuda"], {"cpu": []}),
    "pure": (PURE, ["cpu-library"], {
        "cpu": ["cpu-library"], "cuda": ["cuda-library"], "triton": [],
    }),
    "driver too old for torch": (BLIND, ["torch-driver"], {
        "cpu": [], "cuda": ["torch-driver"], "triton": ["torch-driver"],
    }),
    "torch cannot use the GPU": (
        {"torch": _facts.Torch("2.13.0+cu128", "12.8", "525", False, "no permission")},
        ["torch-gpu"], {"cpu": []},
    ),
    "driver too old for the library": (CUDA_13, ["cuda-driver"], {
        "cuda": ["cuda-driver"], "triton": [],
    }),
    "GPU not served": (OLD_GPU, ["cuda-architectures"], {
        "cuda": ["cuda-architectures"], "triton": [],
    }),
    "library without a record": (
        OLD_GPU | {"cuda": _facts.Cuda(True, True, None, None, None, None)}, [], {"cuda": []},
    ),
    "no CUDA library": (NO_CUDA, [], {"cuda": ["cuda-library"], "triton": []}),
    "broken CUDA library": (BROKEN, ["cuda-library"], {"cuda": ["cuda-library"], "triton": []}),
    "no Triton": (
        {"triton": _facts.Triton(None, "triton is not installed", None)},
        ["triton"], {"triton": ["triton"], "cuda": [], "cpu": []},
    ),
    "no compiler": (
        {"triton": _facts.Triton("3.6.0", None, "no compiler")},
        ["triton-start"], {"triton": ["triton-start"], "cuda": []},
    ),
    "interpreted": (
        {"variables": {"TRITON_INTERPRET": "1"}},
        ["triton-interpret"], {"triton": ["triton-interpret"], "cuda": []},
    ),
}  # fmt: skip


@pytest.mark.parametrize("machine", MACHINES)
def test_reasons_of_a_machine(node, machine):
    changes, bare, of_backend = MACHINES[machine]
    facts = replace(node, **changes)
    assert ids(facts) == bare
    for backend, expected in of_backend.items():
        assert ids(facts, backend) == expected, backend
    for reason in reasons(facts, ()):
        assert reason.reason
        assert reason.fix
        assert "\n" not in reason.reason + reason.fix


@pytest.mark.parametrize("machine", [*MACHINES, "as it is"])
def test_one_screen(node, machine):
    changes = MACHINES[machine][0] if machine in MACHINES else {}
    lines = text_of(replace(node, **changes)).splitlines()
    assert len(lines) <= 40
    assert max(map(len, lines)) <= COLUMNS
    assert all(any(line.startswith(op) for line in lines) for op in OPS)


def test_elsewhere_than_on_linux_nothing_is_slow(node):
    mac = _facts.Python("3.12.1", "CPython", "Darwin", "arm64", "macOS-15")
    facts = replace(node, **PURE, **NO_TORCH, python=mac)
    assert ids(facts) == []
    assert ids(facts, "cpu") == ["cpu-library"]


def test_an_op_without_kernels_and_a_slower_instruction_set(node):
    ops = node.ops | {"nt_xent": {"cpu": served("reference"), "cuda": served("triton", cuda="no")}}
    cpu = replace(node.cpu, capability="portable")
    facts = replace(node, ops=ops, cpu=cpu)
    assert ids(facts) == ["cpu-ops", "cpu-capability", "cuda-ops"]
    assert "nt_xent" in reasons(facts)[0].reason
    assert "avx512" in text_of(facts)


def keys(kind: type, prefix: str = "") -> set[str]:
    """The keys of a dataclass in JSON, those of lists and mappings as of their elements."""
    found = set()
    for name, inside in get_type_hints(kind).items():
        while get_args(inside):
            inside = next(x for x in reversed(get_args(inside)) if x is not type(None))
        found |= keys(inside, f"{prefix}{name}.") if is_dataclass(inside) else {prefix + name}
    return found


@needs_pages
def test_keys_are_those_of_the_page(node):
    listed = set(re.findall(r"^\| `([\w.]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    top = {"schema", "ok", "required", "reasons"}
    assert listed == keys(_facts.Facts) | top
    printed = json.loads(as_json(node, reasons(replace(node, **PURE)), ("cpu",)))
    assert set(printed) == top | {field.name for field in fields(_facts.Facts)}
    assert printed["schema"] == 1
    assert printed["required"] == ["cpu"]
    assert printed["ok"] is False
    assert [set(reason) for reason in printed["reasons"]] == [{"id", "reason", "fix"}]
    assert printed["ops"]["nt_xent"]["cuda"] == {"backend": "triton", "why_not_faster": {}}


@needs_pages
def test_every_reason_is_on_the_page():
    source = (ROOT / "mcr_fast/env/_reasons.py").read_text(encoding="utf-8")
    known = set(re.findall(r'Reason\(\s*"([a-z-]+)"', source))
    page = (ROOT / "docs/clusters.md").read_text(encoding="utf-8")
    table = page.partition("| reason | what is so |")[2].partition("\n\n")[0]
    assert known == set(re.findall(r"^\| `([a-z-]+)` \|", table, re.MULTILINE))
    tried = {i for _, bare, of in MACHINES.values() for i in (*bare, *sum(of.values(), []))}
    assert known == tried | {"cpu-ops", "cpu-capability", "cuda-ops"}


@needs_library
@pytest.mark.skipif(bool(torch.version.cuda), reason="this torch has CUDA")
def test_require_on_this_machine():
    assert command("--require", "cpu").returncode == 0
    for backend in ("cuda", "triton"):
        done = command("--json", "--require", backend)
        assert done.returncode == 1
        assert len(done.stderr.splitlines()) == 1
        assert done.stderr.startswith("mcr_fast: torch ")
        assert json.loads(done.stdout)["reasons"][0]["id"] == "torch-without-cuda"
    assert command("--require", "gpu").returncode == 2


@needs_library
def test_a_slower_instruction_set_ends_with_1():
    best = env.cpu_capability()
    if best == "portable":
        pytest.skip("this processor has no other")
    done = command(MCR_FAST_CPU_CAPABILITY="portable")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("mcr_fast: the CPU kernels use portable, this processor has ")
    assert line.endswith("unset MCR_FAST_CPU_CAPABILITY [cpu-capability]")
    for expected in (torch.__version__, "CPU capability  portable", str(env.CPU_LIBRARY), *OPS):
        assert expected in done.stdout


def test_a_missing_library_is_said_once(tmp_path):
    """By the command, and not by a warning of the import as well."""
    package = tmp_path / "mcr_fast"
    package.mkdir()
    for path in _facts.PLACE.iterdir():
        if path.name not in ("lib", "__pycache__"):
            (package / path.name).symlink_to(path)
    (package / "_libraries.py").unlink()
    (package / "_libraries.py").write_bytes((_facts.PLACE / "_libraries.py").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "mcr_fast.env"], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert done.returncode == (1 if sys.platform == "linux" else 0), done.stderr
    assert "not loaded" in done.stdout
    if sys.platform == "linux":
        (line,) = done.stderr.splitlines()
        assert line.endswith("[cpu-library]")


SMI = """#!/bin/sh
case "$1" in
--query-gpu=driver_version) echo 550.54.15; echo 550.54.15 ;;
--query-gpu=compute_cap,name) echo "9.0, NVIDIA H100 80GB, HBM3"; echo "[N/A], Old" ;;
esac
"""


@pytest.fixture
def _smi(tmp_path, monkeypatch):
    """An nvidia-smi that lists two GPUs, and no other sign of a driver."""
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setattr(_machine, "DRIVER_FILE", tmp_path / "none")


@pytest.mark.usefixtures("_smi")
def test_gpus_that_nvidia_smi_lists(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _machine.driver_release() == "550.54.15"
    h100, old = _machine.listed()
    assert h100 == ("NVIDIA H100 80GB, HBM3", "9.0")
    assert old == ("Old", None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _machine.listed() == []


def test_release_of_the_drivers_file(monkeypatch, tmp_path):
    file = tmp_path / "version"
    file.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.12  Wed Sep 20\n")
    monkeypatch.setattr(_machine, "DRIVER_FILE", file)
    assert _machine.driver_release() == "535.104.12"


def test_what_torch_sees(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (9, index))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    assert _machine.seen_by_torch() == ([("GPU 0", "9.0"), ("GPU 1", "9.1")], None)

    def blind():
        _machine.warnings.warn("The NVIDIA driver is too old\nmore", UserWarning, stacklevel=1)
        return False

    monkeypatch.setattr(torch.cuda, "is_available", blind)
    assert _machine.seen_by_torch() == ([], "The NVIDIA driver is too old")


def test_what_triton_starts_with(monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler -O2")
    assert "(no-such-compiler)" in _machine.why_triton_cannot_start()
    monkeypatch.setenv("CC", sys.executable)
    monkeypatch.setattr(_machine.sysconfig, "get_paths", lambda: {"include": "/nowhere"})
    assert "Python.h is missing" in _machine.why_triton_cannot_start()


def test_facts_of_a_cuda_torch(monkeypatch, node, tmp_path):
    """A torch of CUDA 13 on driver 550: the GPU that nvidia-smi lists, and the driver."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_machine, "seen_by_torch", lambda: ([], "too old"))
    monkeypatch.setattr(_machine, "listed", lambda: [_machine.Gpu("H100", "9.0")])
    monkeypatch.setattr(_machine, "driver_release", lambda: "550.54.15")
    monkeypatch.setattr(_facts, "driver_cuda", lambda: "12.4")
    monkeypatch.setattr(_facts.libraries, "CUDA_LIBRARY", tmp_path / "none.so")
    facts = _facts.collect()
    assert facts.gpus == [_facts.Gpu("H100", "9.0", None)]
    assert facts.torch == _facts.Torch(torch.__version__, "13.0", "580", False, "too old")
    assert "torch-driver" in ids(facts, "cuda")
    assert "driver 580 or newer (CUDA 13.0), found 550.54.15 (CUDA 12.4)" in str(reasons(facts))


@needs_library
def test_glibc_of_the_library():
    needed = _elf.glibc_needed(env.CPU_LIBRARY)
    assert re.fullmatch(r"2\.\d+", needed)
    found = _machine.glibc()
    assert tuple(map(int, needed.split("."))) <= tuple(map(int, found.split(".")))


def test_files_that_are_no_library(tmp_path):
    file = tmp_path / "x.so"
    assert _elf.glibc_needed(file) is cuda_record(file) is None
    for content in (b"", b"not a library", b"\x7fELF\x02\x01", b"\x7fELF\x01\x01" + bytes(90)):
        file.write_bytes(content)
        assert _elf.glibc_needed(file) is cuda_record(file) is None
