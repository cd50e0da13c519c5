"""The source distribution: what is in it and in its metadata, and what pip makes of it."""

import email
import os
import re
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from programs import run_python
from sdists import (
    FOLDERS,
    TOP,
    Environment,
    build_sdist,
    copy_of_tree,
    unpack_sdist,
    wheelhouse,
)
from wheels import NT_XENT, ROOT

import mcr_fast
from mcr_fast import env

BESIDE = pytest.mark.process("beside")
STRAY = (
    "mcr_fast/lib/libmcr_fast_cpu.so",
    "mcr_fast/lib/not_built.txt",
    "mcr_fast/__pycache__/env.cpython-311.pyc",
    "build/native/CMakeCache.txt",
    "dist/mcr_fast-0.0.1.tar.gz",
    "tests/test_build.py",
    ".venv/pyvenv.cfg",
)
VALUE = f"import torch, mcr_fast; print({NT_XENT})"


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    source = copy_of_tree(tmp_path_factory.mktemp("source"))
    for name in STRAY:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text("stray\n")
    return build_sdist(source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def metadata(sdist) -> email.message.Message:
    with tarfile.open(sdist) as archive:
        (name,) = (name for name in archive.getnames() if re.fullmatch("[^/]*/PKG-INFO", name))
        return email.message_from_bytes(archive.extractfile(name).read())


# What is in it


def test_holds_what_a_build_needs_and_nothing_else(sdist):
    assert sdist.name == f"mcr_fast-{mcr_fast.__version__}.tar.gz"
    root = sdist.name.removesuffix(".tar.gz")
    with tarfile.open(sdist) as archive:
        found = {member.name for member in archive.getmembers() if member.isfile()}
    found = {name for name in found if ".egg-info/" not in name}
    expected = {*TOP, "PKG-INFO", "setup.cfg", "mcr_fast/py.typed"}
    for folder in FOLDERS:
        anything = "*" if folder in ("csrc", "third_party") else "*.py"
        paths = (path for path in (ROOT / folder).rglob(anything) if path.is_file())
        expected |= {str(path.relative_to(ROOT)) for path in paths}
    assert found == {f"{root}/{name}" for name in expected}


def test_metadata(metadata):
    assert metadata["Version"] == mcr_fast.__version__
    assert metadata["License-Expression"] == "MIT AND BSD-3-Clause"
    assert metadata.get_all("License-File") == ["LICENSE", "third_party/torch/LICENSE"]
    classifiers = metadata.get_all("Classifier")
    assert "Typing :: Typed" in classifiers
    assert not [name for name in classifiers if name.startswith("License ::")]  # PEP 639
    oldest = f"Programming Language :: Python :: {metadata['Requires-Python'].removeprefix('>=')}"
    assert oldest in classifiers
    assert "modality competition" in metadata["Keywords"]


def test_the_citation_is_of_this_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.*)$", text, re.MULTILINE)[1] == mcr_fast.__version__


def test_headers_of_torch_are_complete():
    """Every one that a source names; what stands under another platform's `#if` may be absent."""
    copied = ROOT / "third_party" / "torch"
    for path in (ROOT / "csrc").rglob("*.*"):
        for name in re.findall(r"#include <((?:torch|ATen|c10)/[^>]+)>", path.read_text()):
            assert (copied / name).is_file(), f"{path.name}: .ci/vendor-torch-headers copies {name}"
    version = tuple(map(int, (copied / "VERSION").read_text().split(".")[:2]))
    assert version >= (2, 10)
    assert "Redistribution and use in source and binary forms" in (copied / "LICENSE").read_text()


# Other systems


@pytest.mark.parametrize(("name", "system"), [("darwin", "Darwin"), ("win32", "Windows")])
def test_package_asks_for_no_module_of_linux(name, system, tmp_path):
    for folder, package in (("mcr_fast", "mcr_fast"), ("kernels", "mcr_fast/kernels")):
        ignore = shutil.ignore_patterns("lib", "kernels", "__pycache__")
        shutil.copytree(ROOT / folder, tmp_path / package, ignore=ignore)
    code = f"""
import os, platform, sys, torch
for module in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[module] = None
for function in ("fork", "sched_getaffinity", "uname"):
    delattr(os, function)
sys.platform, platform.system = {name!r}, lambda: {system!r}
import mcr_fast
assert mcr_fast.__file__.startswith({str(tmp_path)!r})
print({NT_XENT}, mcr_fast.backends()["nt_xent"]["serves"]["cpu"])
"""
    result = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert "To build them use Linux: they are built nowhere else." in result.stderr
    value, backend = result.stdout.split()
    assert backend == "reference"
    assert float(value) == pytest.approx(eval(NT_XENT, {"torch": torch, "mcr_fast": mcr_fast}))


# What plain `pip install` makes of it


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> Path:
    return wheelhouse(tmp_path_factory.mktemp("wheelhouse"))


def check_compiled(environment: Environment, folder: Path) -> None:
    environment.add_torch()
    code = f"{VALUE}; from mcr_fast import _libraries; print(_libraries.cpu_source())"
    result = environment.run(code)
    value, source = result.stdout.split()
    assert Path(source).parent == folder / "mcr_fast/lib"
    assert float(value) == pytest.approx(eval(NT_XENT, {"torch": torch, "mcr_fast": mcr_fast}))
    assert result.stderr == ""


needs_compiler = pytest.mark.skipif(
    not env.cpu_library_loaded(), reason="no compiled library here either"
)


@pytest.fixture
def hasty_compiler(tmp_path, monkeypatch):
    """The first `c++` on PATH optimises nothing: the same build in a third of the time."""
    program = tmp_path / "bin/c++"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {shutil.which("c++")} "$@" -O0\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)


@needs_compiler
@BESIDE
@pytest.mark.slow
def test_tree_compiles_without_torch(sdist, wheels, hasty_compiler, tmp_path):
    """As a package, then editable: the second build finds the objects of the first."""
    tree = unpack_sdist(sdist, tmp_path / "unpacked")
    environment = Environment(tmp_path / "installed", wheels)
    environment.install(str(tree))
    assert environment.libraries() == [env.CPU_LIBRARY.name]
    check_compiled(environment, environment.packages)

    environment = Environment(tmp_path / "editable", wheels)
    environment.install("--editable", str(tree))
    check_compiled(environment, tree)


@BESIDE
@pytest.mark.slow
def test_without_a_compiler_the_import_says_so(sdist, wheels, tmp_path):
    environment = Environment(tmp_path / "environment", wheels)
    empty = tmp_path / "empty"
    empty.mkdir()
    printed = environment.install("--verbose", str(sdist), PATH=str(empty), CXX="")
    reason = "no C++ compiler (c++, g++, clang++ not found); install one or set CXX"
    assert f"mcr_fast: MCR_FAST_BUILD=auto builds 'none' ({reason})" in printed
    assert environment.libraries() == ["not_built.txt"]

    environment.add_torch()
    result = environment.run(VALUE)
    assert result.stderr.count("Warning") == 1
    assert f"(libmcr_fast_cpu.so is not there: when it was installed: {reason})" in result.stderr
    assert "MCR_FAST_BUILD=cpu pip install --force-reinstall --no-deps" in result.stderr
    report = environment.run("from mcr_fast import env; print(env.report())").stdout
    assert reason in report


@BESIDE
@pytest.mark.slow
def test_asking_for_the_library_without_a_compiler_is_an_error(sdist, wheels, tmp_path):
    environment = Environment(tmp_path / "environment", wheels)
    variables = {"PATH": os.defpath, "CXX": "no-such-compiler", "MCR_FAST_BUILD": "cpu"}
    result = environment.pip(str(sdist), **variables)
    assert result.returncode != 0
    message = "MCR_FAST_BUILD=cpu cannot be built: no C++ compiler (no-such-compiler not found)"
    assert message in result.stdout + result.stderr
