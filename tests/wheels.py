"""Wheels for the tests: built, and unpacked where the source tree cannot be seen."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from programs import ROOT, run_python

from mcr_fast import env

EMBEDDINGS = "torch.linspace(-1, 1, 48).sin().reshape(2, 6, 4)"
NT_XENT = f"mcr_fast.functional.nt_xent(list({EMBEDDINGS}), torch.arange(6) % 3).item()"


def run(*command: str, cwd: Path = ROOT, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, env=os.environ | variables, check=False
    )


def binutils(tool: str, *arguments: str) -> str:
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    result = run(tool, *arguments)
    assert result.returncode == 0, result.stderr
    return result.stdout


CUDA_LIBRARY = "libmcr_fast_cuda.so"
# What each library may ask the loader for, besides the C and C++ runtime: the parts of torch that
# are in the process anyway. The CUDA runtime is inside the library, and opens the driver itself.
TORCH_LIBRARIES = {
    env.CPU_LIBRARY.name: {"libtorch_cpu.so"},
    CUDA_LIBRARY: {"libtorch.so", "libtorch_cpu.so", "libtorch_cuda.so"},
}
RUNTIME = re.compile(
    r"(libstdc\+\+|libgcc_s|libc|libm|libpthread|libdl|librt|ld-linux[\w-]*)\.so\.\d"
)


def check_library(path: Path) -> None:
    """It needs torch's stable ABI and the runtime alone, and exports nothing of its own."""
    dynamic = binutils("readelf", "-d", str(path))
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    from_torch = {library for library in needed if not RUNTIME.fullmatch(library)}
    assert from_torch
    assert from_torch <= TORCH_LIBRARIES[path.name]
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    # Names of the C and C++ runtime carry a version. Of the others only torch's C shim is stable:
    # no Python symbol, and no mangled name, whose meaning changes with every release of torch.
    symbols = binutils("nm", "-D", str(path))
    others = [symbol for symbol in re.findall(r"\bU (\S+)", symbols) if "@" not in symbol]
    assert others
    assert not [symbol for symbol in others if not symbol.startswith(("aoti_torch_", "torch_"))]
    defined = binutils("nm", "-D", "--defined-only", str(path))
    assert not re.findall(r"\S*3mcr\S*", defined)


def build_wheel(source: Path, destination: Path, build: str) -> Path:
    result = run(
        *(sys.executable, "-m", "pip", "wheel", ".", "--no-build-isolation", "--no-deps"),
        *("--wheel-dir", str(destination)),
        cwd=source,
        MCR_FAST_BUILD=build,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = destination.glob("*.whl")
    return wheel


def unpack(wheel: Path, target: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(target)
    return target


def run_installed(target: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Run `code` with the unpacked wheel in front of the editable install."""
    assertion = f"import mcr_fast; assert mcr_fast.__file__.startswith({str(target)!r}); "
    return run_python("-c", assertion + code, cwd=target, PYTHONPATH=str(target))
