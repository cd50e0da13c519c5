"""The CUDA library as nvcc compiles it: what its kernels take of a multiprocessor, its symbols.

Needs nvcc, neither a GPU nor a CUDA torch.
"""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest
from wheels import ROOT, binutils, check_library

BUILD = ROOT / "build" / "cuda-report"
ARCHITECTURES = ("80", "90")
TOOLS = ("nvcc", "cmake", "ninja")
MOST_KERNELS = 120  # of an architecture

REGISTERS = 65536  # of a multiprocessor
# that they keep on one
THREADS = 512  # the exact kernels over pairs: teams.h
BAND_THREADS = {"masses": 256, "terms": 256, "centre": 512}  # permuted_divergence/cuda/band_*.cu
SMALL_THREADS = 256  # those of a small batch: permuted_divergence/cuda/small.cu

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(shutil.which(tool) for tool in TOOLS), reason=f"needs {', '.join(TOOLS)}"
    ),
]


class Kernel(NamedTuple):
    """One kernel of one architecture, by the compiler's report."""

    name: str
    architecture: str
    stack: int
    spills: int
    registers: int


def compile_library(log: Path) -> None:
    architectures = ";".join(f"{code}-real" for code in ARCHITECTURES)
    definitions = ("-DMCR_CUDA=ON", f"-DMCR_CUDA_ARCHITECTURES={architectures}")
    configure = ["cmake", "-S", str(ROOT), "-B", str(BUILD), "-G", "Ninja", *definitions]
    subprocess.run(configure, check=True, capture_output=True)
    target = ["cmake", "--build", str(BUILD), "--clean-first", "--target", "mcr_fast_cuda"]
    result = subprocess.run(target, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    log.write_text(result.stdout + result.stderr)


@pytest.fixture(scope="module")
def library() -> Path:
    """Compiled again when a source has changed: it takes a minute."""
    sources = [ROOT / "CMakeLists.txt", *sorted(ROOT.glob("csrc/**/*.*"))]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
    log = BUILD / f"{digest[:16]}.log"
    if not log.exists():
        compile_library(log)
    (BUILD / "report.log").write_text(log.read_text())
    return BUILD / "lib" / "libmcr_fast_cuda.so"


@pytest.fixture(scope="module")
def kernels(library) -> list[Kernel]:
    report = re.compile(
        r"Compiling entry function '(\S+)' for 'sm_(\d+)'\n.*\n"
        r"\s+(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
        r".*Used (\d+) registers"
    )
    text = (BUILD / "report.log").read_text()
    return [
        Kernel(m[1], m[2], int(m[3]), int(m[4]) + int(m[5]), int(m[6]))
        for m in report.finditer(text)
    ]


def over_pairs(kernel: Kernel) -> bool:
    return "DeviceTeam" in kernel.name and not over_few_pairs(kernel)


def over_few_pairs(kernel: Kernel) -> bool:
    return "small_sides_kernel" in kernel.name


def test_every_architecture_has_every_kernel(kernels):
    found = {a: {k.name for k in kernels if k.architecture == a} for a in ARCHITECTURES}
    assert found["80"] == found["90"]
    assert len(found["90"]) <= MOST_KERNELS
    for name in BAND_THREADS:
        assert [k for k in kernels if f"band_{name}_kernel" in k.name], name


def test_hot_kernels_stay_in_registers(kernels):
    for kernel in kernels:
        assert kernel.stack == 0, kernel
        assert kernel.spills == 0, kernel


def test_registers_leave_the_occupancy_of_the_design(kernels):
    for kernel in filter(over_pairs, kernels):
        assert kernel.registers * THREADS <= REGISTERS, kernel
    for kernel in filter(over_few_pairs, kernels):
        assert kernel.stack == 0, kernel
        assert kernel.registers * SMALL_THREADS <= REGISTERS, kernel
    for name, threads in BAND_THREADS.items():
        for kernel in (k for k in kernels if f"band_{name}_kernel" in k.name):
            assert kernel.registers * threads <= REGISTERS, kernel


def test_kernels_have_the_name_that_the_sanitizer_is_told(kernels):
    from bench.gpu.sanitize import MANGLED

    assert all(MANGLED in kernel.name for kernel in kernels)


def test_small_contrastive_kernels_leave_room_for_other_blocks(kernels):
    # dtypes, in pieces or by the number: one block of 256 threads, three of them
    for name, threads in {"small_rows_kernel": 256, "small_gradient_kernel": 768}.items():
        found = [kernel for kernel in kernels if name in kernel.name]
        assert len(found) == len(ARCHITECTURES) * 3 * 2
        for kernel in found:
            assert kernel.registers * threads <= REGISTERS, kernel


def test_library_needs_torch_alone_and_its_stable_abi(library):
    check_library(library)
    assert "aoti_torch_get_current_cuda_stream" in binutils("nm", "-D", str(library))
