"""What is here, as data: the fields are the keys of `python -m mcr_fast.env --json`.

docs/api/backends.md describes each; a test holds the two against each other.
"""

import importlib.metadata
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from mcr_fast import _libraries as libraries
from mcr_fast._cuda_code import cuda_record, driver_cuda, floor_of, served_by
from mcr_fast._version import __version__
from mcr_fast.env import _elf as elf
from mcr_fast.env import _machine as machine
from mcr_fast.ops._backend import backends, has_code
from mcr_fast.ops.registry import preferred, row_of

PLACE = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Package:
    """The copy of mcr_fast that is imported."""

    version: str
    place: str
    kind: str  # "wheel", "source" (tree), or "copy" of files that no installer knows
    tag: str | None  # of the wheel
    libraries: list[str]  # beside it; none: it is pure Python


@dataclass(frozen=True)
class Python:
    """The interpreter and the system."""

    version: str
    implementation: str
    system: str
    machine: str
    platform: str


@dataclass(frozen=True)
class Glibc:
    """The C library found, and by library what is needed."""

    found: str | None
    needed: dict[str, str | None]


@dataclass(frozen=True)
class Torch:
    """The torch that is imported."""

    version: str
    cuda: str | None  # that it is built with
    driver_floor: str | None  # the first driver for that
    sees_gpu: bool
    why_no_gpu: str | None  # in its own words, where it gives any


@dataclass(frozen=True)
class Cpu:
    """The compiled CPU library."""

    loaded: bool
    source: str | None
    why_not: str | None
    build: str | None
    capability: str | None
    best_capability: str | None  # that this processor and the library have
    threads: int
    cores: int


@dataclass(frozen=True)
class Driver:
    """NVIDIA's driver: its release, and the newest CUDA that it knows."""

    version: str | None
    cuda: str | None


@dataclass(frozen=True)
class Gpu:
    """A GPU, and the code of our CUDA library that it would run."""

    name: str
    capability: str | None
    served_by: str | None


@dataclass(frozen=True)
class Cuda:
    """The compiled CUDA library."""

    present: bool
    loaded: bool
    why_not: str | None
    toolkit: str | None  # that it is built with, its CUDA runtime
    driver_floor: str | None  # the first driver for that
    architectures: list[str] | None


@dataclass(frozen=True)
class Triton:
    """Triton, which is not imported for this."""

    version: str | None
    why_not: str | None  # None: its kernels can run
    why_no_start: str | None  # what it lacks on a machine with a GPU


@dataclass(frozen=True)
class Served:
    """An op on tensors of one kind of device."""

    backend: str
    why_not_faster: dict[str, str]  # backend that would come first -> why it is not here


@dataclass(frozen=True)
class Facts:
    """Everything."""

    package: Package
    python: Python
    glibc: Glibc
    torch: Torch
    cpu: Cpu
    driver: Driver
    gpus: list[Gpu]
    cuda: Cuda
    triton: Triton
    variables: dict[str, str]
    ops: dict[str, dict[str, Served]]  # op -> "cpu" or "cuda" -> what serves it


def collect() -> Facts:
    """The facts of this process."""
    driver = Driver(machine.driver_release(), driver_cuda())
    cuda = _cuda()
    visible, why = machine.seen_by_torch()
    gpus = [
        Gpu(
            *gpu,
            gpu.capability
            and served_by(gpu.capability, cuda.architectures, cuda.toolkit, driver.cuda),
        )
        for gpu in visible or machine.listed()
    ]
    return Facts(
        package=_package(),
        python=Python(
            platform.python_version(),
            platform.python_implementation(),
            platform.system(),
            platform.machine(),
            platform.platform(),
        ),
        glibc=Glibc(machine.glibc(), {path.name: elf.glibc_needed(path) for path in _present()}),
        torch=_torch(bool(visible), why),
        cpu=_cpu(),
        driver=driver,
        gpus=gpus,
        cuda=cuda,
        triton=Triton(_triton(), libraries.why_no_triton(), machine.why_triton_cannot_start()),
        variables=libraries.variables(),
        ops=_ops(),
    )


def _present() -> list[Path]:
    return [path for path in (libraries.CPU_LIBRARY, libraries.CUDA_LIBRARY) if path.is_file()]


def _package() -> Package:
    root = PLACE.parent
    kind = "source" if (root / "pyproject.toml").is_file() else "copy"
    tag: str | None = None
    for metadata in root.glob("mcr_fast-*.dist-info/WHEEL"):
        found = re.search(r"^Tag: (.+)$", metadata.read_text(encoding="utf-8"), re.MULTILINE)
        kind, tag = "wheel", found[1] if found else None
    return Package(__version__, str(PLACE), kind, tag, [path.name for path in _present()])


def _torch(sees_gpu: bool, why_no_gpu: str | None) -> Torch:
    cuda = torch.version.cuda
    floor = floor_of(cuda)[1] if cuda else None
    return Torch(torch.__version__, cuda, floor, sees_gpu, why_no_gpu)


def _cpu() -> Cpu:
    loaded = libraries.cpu_library_loaded()
    return Cpu(
        loaded=loaded,
        source=libraries.cpu_source() or None,
        why_not=libraries.load_error(),
        build=str(torch.ops.mcr_fast.build_info()) if loaded else None,
        capability=libraries.cpu_capability() if loaded else None,
        best_capability=_best_capability() if loaded else None,
        threads=torch.get_num_threads(),
        cores=machine.cores(),
    )


def _best_capability() -> str:
    """It tries the library's, and only where a variable may have set another one."""
    current = libraries.cpu_capability()
    if "MCR_FAST_CPU_CAPABILITY" not in libraries.variables():
        return current
    compiled = str(torch.ops.mcr_fast.build_info()).rpartition("cpu: ")[2].split(", ")
    try:
        for name in reversed(compiled):  # from the lowest to the highest
            try:
                return libraries.cpu_capability(name)
            except RuntimeError:
                continue
        return current
    finally:
        libraries.cpu_capability(current)


def _cuda() -> Cuda:
    path = libraries.CUDA_LIBRARY
    record = cuda_record(path)
    why_not = libraries.cuda_load_error()
    toolkit, architectures = record or (None, None)
    return Cuda(
        present=path.is_file(),
        loaded=why_not is None,
        why_not=why_not,
        toolkit=toolkit,
        driver_floor=floor_of(toolkit)[1] if toolkit else None,
        architectures=architectures,
    )


def _triton() -> str | None:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return None


def _ops() -> dict[str, dict[str, Served]]:
    found = {}
    for op, status in backends().items():
        found[op] = {
            device: Served(backend, _why_not_faster(op, device, backend, status["unavailable"]))
            for device, backend in status["serves"].items()
        }
    return found


def _why_not_faster(
    op: str, device: str, backend: str, unavailable: dict[str, str]
) -> dict[str, str]:
    """The backends with kernels for the op that come before the one that serves it."""
    served = row_of(op).made_of or op  # what its backend is chosen for
    order = ("cpu",) if device == "cpu" else (*preferred(served), "triton", "cuda")
    reasons = {}
    for name in order:
        if name == backend:
            break
        if name not in row_of(served).backends:
            continue
        if name in unavailable:
            reasons[name] = unavailable[name]
        elif name == "triton" and libraries.triton_interpreted():
            reasons[name] = "TRITON_INTERPRET=1 asks for interpreted kernels, which are for tests"
        elif name == "cuda" and not has_code(torch.device(name)):
            reasons[name] = "the CUDA library has no code for this GPU under this driver"
    return reasons
