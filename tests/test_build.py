"""What is built: the objects of an instruction set, the choice, wheels without a library."""

import os
import platform
import re
import runpy
import shutil
import site
import sys
from pathlib import Path

import pytest
import torch
from contrastive import needs_library
from wheels import NT_XENT, ROOT, binutils, build_wheel, run_installed, unpack

import mcr_fast
from mcr_fast import env


@pytest.fixture
def setup_py(monkeypatch, capsys):
    """Runs setup.py; its names, and what it printed."""

    def call(**variables: str) -> tuple[dict, str]:
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["setup.py", "--version"])
        monkeypatch.chdir(ROOT)
        return runpy.run_path("setup.py"), capsys.readouterr().err

    return call


def program(folder: Path, name: str, output: str = "") -> None:
    """A stand-in that prints one line."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\necho '{output}'\n")
    (folder / name).chmod(0o755)


def torch_of(cuda: str | None, site: Path) -> Path:
    """A folder with as much of a torch as says which CUDA it is built with."""
    (site / "torch").mkdir(parents=True)
    (site / "torch/__init__.py").write_text("raise ImportError('not to be imported')\n")
    (site / "torch/version.py").write_text(f"cuda = {cuda!r}\n")
    return site


# The objects


@needs_library
def test_no_function_leaks_between_instruction_sets():
    objects = sorted((ROOT / "build/native/CMakeFiles").glob("mcr_kernels_*.dir/**/*.o"))
    if not objects:
        pytest.skip("built elsewhere")
    for path in objects:
        isa = re.search(r"mcr_kernels_(\w+)\.dir", str(path)).group(1)
        # Weak symbols: the linker keeps one copy of each for the whole library.
        weak = re.findall(r"\b[WVu] (\S+)", binutils("nm", "--defined-only", str(path)))
        leaking = [name for name in weak if f"3mcr{len(isa)}{isa}" not in name]
        assert not leaking, f"{isa}: {leaking}"


# The choice of what to build

needs_tools = pytest.mark.skipif(
    not all(map(shutil.which, ("c++", "cmake", "ninja"))), reason="no c++, cmake or ninja on PATH"
)


@needs_tools
def test_build_auto_says_what_it_chose(setup_py):
    _, printed = setup_py(MCR_FAST_BUILD="auto", CUDA_HOME="/no-such-folder", CUDACXX="")
    assert "MCR_FAST_BUILD=auto builds 'cpu' (nvcc was not found" in printed


@needs_tools
@pytest.mark.parametrize(
    ("gpu", "cuda_torch", "listed", "expected"),
    [
        ("", None, "", "'cpu' (neither a GPU nor a CUDA torch; MCR_FAST_BUILD=cuda compiles"),
        ("9.0", None, "", "'cuda' (the CPU library, and the CUDA one with "),
        ("", "12.8", "", "'cuda' (the CPU library, and the CUDA one with "),
        ("", None, "all", "'cuda' (the CPU library, and the CUDA one with "),
    ],
)
def test_build_auto_compiles_cuda_for_whom_it_serves(
    gpu, cuda_torch, listed, expected, setup_py, monkeypatch, tmp_path
):
    program(tmp_path / "bin", "nvcc")
    program(tmp_path / "bin", "nvidia-smi", gpu)
    monkeypatch.syspath_prepend(torch_of(cuda_torch, tmp_path / "site"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    _, printed = setup_py(MCR_FAST_BUILD="auto", CUDA_HOME=str(tmp_path), CUDACXX="")
    assert f"MCR_FAST_BUILD=auto builds {expected}" in printed


def test_build_auto_without_compiler_builds_none(setup_py):
    names, printed = setup_py(MCR_FAST_BUILD="auto", CXX="no-such-compiler")
    assert "auto builds 'none' (no C++ compiler (no-such-compiler not found)" in printed
    assert printed.count("\n") == 1
    assert names["WHY_NONE"].startswith("when it was installed: no C++ compiler")


@pytest.mark.parametrize("system", ["Darwin", "Windows"])
def test_other_systems_get_the_pure_package(system, setup_py, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: system)
    names, printed = setup_py(MCR_FAST_BUILD="auto")
    assert names["BUILD"] == "none"
    reason = f"compiled kernels are built on Linux only, this is {system}"
    assert printed == f"mcr_fast: MCR_FAST_BUILD=auto builds 'none' ({reason})\n"
    with pytest.raises(SystemExit, match=f"MCR_FAST_BUILD=cpu cannot be built: {reason}"):
        setup_py(MCR_FAST_BUILD="cpu")


def test_a_torch_that_the_isolated_build_hides_is_found(setup_py, monkeypatch, tmp_path):
    names, _ = setup_py(MCR_FAST_BUILD="none")
    environment = torch_of("12.8", tmp_path / "environment")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])  # as in a build environment of pip's
    monkeypatch.setattr(site, "getsitepackages", lambda prefixes: [str(environment)])
    assert names["torch_cuda"]() == "12.8"
    monkeypatch.setattr(site, "getsitepackages", lambda prefixes: [str(tmp_path)])
    assert names["torch_cuda"]() is None


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ("cuda", "MCR_FAST_BUILD=cuda cannot be built: no C++ compiler"),
        ("gpu", "'gpu' is unknown; choose auto, cpu, cuda, none"),
        ("cpu", "cannot be built: no C++ compiler"),
    ],
)
def test_build_errors(build, message, setup_py):
    with pytest.raises(SystemExit, match=re.escape(message)):
        setup_py(MCR_FAST_BUILD=build, CXX="no-such-compiler")


@needs_tools
def test_a_compiler_that_does_not_compile_ends_with_what_to_do(setup_py, monkeypatch, tmp_path):
    names, _ = setup_py(MCR_FAST_BUILD="none")
    monkeypatch.setenv("CXX", str(shutil.which("false")))
    with pytest.raises(SystemExit, match="MCR_FAST_BUILD=none installs the package without them"):
        names["run_cmake"](tmp_path / "build", False)


@needs_tools
def test_build_cuda_without_nvcc_names_the_fix(setup_py, tmp_path):
    message = "MCR_FAST_BUILD=cuda cannot be built: nvcc was not found; set CUDA_HOME"
    with pytest.raises(SystemExit, match=message):
        setup_py(MCR_FAST_BUILD="cuda", CUDA_HOME=str(tmp_path), CUDACXX="")


@pytest.mark.parametrize(
    ("listed", "expected"),
    [
        ("8.0;9.0+PTX", "80-real;90-real;90-virtual"),
        ("8.6 9.0a", "86-real;90a-real"),
        ("8.0,7.5", "80-real;75-real"),
    ],
)
def test_architectures_are_read_as_torch_reads_them(listed, expected, setup_py):
    names, _ = setup_py(TORCH_CUDA_ARCH_LIST=listed, MCR_FAST_BUILD="none")
    assert names["cuda_architectures"]() == expected


# The wheels, each unpacked where the source tree cannot be seen


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for folder in ("mcr_fast", "kernels", "third_party"):
        ignore = shutil.ignore_patterns("lib", "__pycache__")
        shutil.copytree(ROOT / folder, source / folder, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file() and path.name != ".git":
            shutil.copy(path, source)
    return build_wheel(source, tmp_path_factory.mktemp("pure"), "none")


def test_pure_wheel_works_through_the_reference(pure_wheel, tmp_path):
    assert pure_wheel.name.endswith("-py3-none-any.whl")
    target = unpack(pure_wheel, tmp_path)
    assert not list(target.rglob("*.so"))
    result = run_installed(
        target,
        "import torch, mcr_fast.kernels; from mcr_fast import env; env.load_libraries(); "
        f"print(mcr_fast.backends()['nt_xent']['serves']['cpu'], {NT_XENT})",
    )
    assert result.stderr.count("Warning") == 1
    assert "(libmcr_fast_cpu.so is not there: it was installed with MCR_FAST_BUILD=none)" in (
        result.stderr
    )
    assert "MCR_FAST_BUILD=cpu pip install --force-reinstall --no-deps" in result.stderr
    backend, value = result.stdout.split()
    assert backend == "reference"
    assert float(value) == pytest.approx(eval(NT_XENT, {"torch": torch, "mcr_fast": mcr_fast}))


@pytest.mark.slow
def test_broken_library_is_reported(pure_wheel, tmp_path):
    target = unpack(pure_wheel, tmp_path)
    library = target / "mcr_fast" / "lib" / env.CPU_LIBRARY.name
    library.write_text("not a library")
    result = run_installed(target, "mcr_fast.env.main()")
    assert result.returncode == 0, result.stderr
    assert re.search(r"error .*invalid ELF header|error .*file too short", result.stdout)
    assert "CPU library     not loaded" in result.stdout
