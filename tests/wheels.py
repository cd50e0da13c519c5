"""Wheels for the tests: built, and unpacked where the source tree cannot be seen."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from programs import ROOT, run_python

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
