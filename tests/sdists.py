"""Source distributions for the tests, and environments that they are installed into."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch
from wheels import ROOT, run

BUILD_NEEDS = ("setuptools>=77", "cmake>=3.22", "ninja")
TOP = (
    *("CHANGELOG.md", "CITATION.cff", "CMakeLists.txt", "LICENSE", "MANIFEST.in", "README.md"),
    *("pyproject.toml", "setup.py"),
)
FOLDERS = ("csrc", "kernels", "mcr_fast", "third_party")


def copy_of_tree(target: Path) -> Path:
    """What the distribution is made of, without what builds and runs have left there."""
    ignore = shutil.ignore_patterns("lib", "__pycache__", "*.egg-info")
    for folder in FOLDERS:
        shutil.copytree(ROOT / folder, target / folder, ignore=ignore)
    for name in TOP:
        shutil.copy(ROOT / name, target)
    return target


def build_sdist(source: Path, destination: Path) -> Path:
    code = f"from setuptools import build_meta; build_meta.build_sdist({str(destination)!r})"
    result = run(sys.executable, "-c", code, cwd=source, MCR_FAST_BUILD="none")
    assert result.returncode == 0, result.stdout + result.stderr
    (sdist,) = destination.glob("*.tar.gz")
    return sdist


def unpack_sdist(sdist: Path, target: Path) -> Path:
    with tarfile.open(sdist) as archive:
        archive.extractall(target)
    (tree,) = target.iterdir()
    return tree


def wheelhouse(target: Path) -> Path:
    """What a build asks an index for, so that the installations themselves ask none."""
    pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:")
    result = run(*pip, "--quiet", "--dest", str(target), *BUILD_NEEDS)
    if result.returncode:
        pytest.skip(f"no package index: {result.stderr[-200:]}")
    return target


# Whatever the machine has, the CPU library alone.
BUILD = {"MCR_FAST_BUILD": "auto", "CUDA_HOME": "/no-such-folder", "CUDACXX": ""}


class Environment:
    """A virtual environment; plain `pip install`, with build isolation, goes there."""

    def __init__(self, folder: Path, wheels: Path):
        self.folder, self.wheels = folder, wheels
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        self.python = str(folder / "bin/python")
        (self.packages,) = folder.glob("lib/python3*/site-packages")

    def install(self, *what: str, **variables: str) -> str:
        """What pip said of it."""
        result = self.pip(*what, **variables)
        assert result.returncode == 0, result.stdout + result.stderr
        return result.stdout + result.stderr

    def pip(self, *what: str, **variables: str) -> subprocess.CompletedProcess[str]:
        options = ("--no-deps", "--no-cache-dir", "--no-index", "--find-links", str(self.wheels))
        command = (self.python, "-m", "pip", "install", *options, *what)
        return run(*command, cwd=self.folder, **BUILD | variables)

    def add_torch(self) -> None:
        """The torch of these tests and what it needs, without their mcr_fast."""
        beside = self.folder / "torch"
        beside.mkdir()
        for path in Path(torch.__file__).parent.parent.iterdir():
            if not path.name.startswith(("mcr_fast", "__editable__")) and path.suffix != ".pth":
                (beside / path.name).symlink_to(path)
        (self.packages / "torch.pth").write_text(f"{beside}\n")

    def run(self, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
        result = run(self.python, "-c", code, cwd=self.folder, **variables)
        assert result.returncode == 0, result.stderr
        return result

    def libraries(self) -> list[str]:
        return sorted(path.name for path in self.packages.glob("mcr_fast/lib/*"))
