"""What is built: the objects of an instruction set, the choice, wheels without a library."""

import re
import shutil
import subprocess
import sys

import pytest
import torch
from wheels import NT_XENT, ROOT, binutils, build_wheel, run, run_installed, unpack

import mcr_fast
from mcr_fast import env

needs_library = pytest.mark.skipif(not env.cpu_library_loaded(), reason="no compiled library")


def setup_py(**variables: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "setup.py", "--version", **variables)


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


def test_build_auto_says_what_it_chose():
    result = setup_py(MCR_FAST_BUILD="auto", CUDA_HOME="/no-such-folder", CUDACXX="")
    assert result.returncode == 0
    assert "MCR_FAST_BUILD=auto builds 'cpu' (nvcc was not found" in result.stderr


def test_build_auto_without_compiler_builds_none():
    result = setup_py(MCR_FAST_BUILD="auto", CXX="no-such-compiler")
    assert result.returncode == 0
    assert "auto builds 'none' (no C++ compiler (no-such-compiler not found)" in result.stderr


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ("cuda", "MCR_FAST_BUILD=cuda cannot be built: no C++ compiler"),
        ("gpu", "'gpu' is unknown; choose auto, cpu, cuda, none"),
        ("cpu", "cannot be built: no C++ compiler"),
    ],
)
def test_build_errors(build, message):
    result = setup_py(MCR_FAST_BUILD=build, CXX="no-such-compiler")
    assert result.returncode != 0
    assert message in result.stderr


# The wheels, each unpacked where the source tree cannot be seen


@pytest.fixture(scope="module")
def pure_wheel(tmp_path_factory):
    source = tmp_path_factory.mktemp("source")
    for folder in ("mcr_fast", "kernels"):
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
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("Warning") == 1
    assert "pip install -e . --no-build-isolation" in result.stderr
    backend, value = result.stdout.split()
    assert backend == "reference"
    assert float(value) == pytest.approx(eval(NT_XENT, {"torch": torch, "mcr_fast": mcr_fast}))


def test_broken_library_is_reported(pure_wheel, tmp_path):
    target = unpack(pure_wheel, tmp_path)
    library = target / "mcr_fast" / "lib" / env.CPU_LIBRARY.name
    library.parent.mkdir()
    library.write_text("not a library")
    result = run_installed(target, "mcr_fast.env.main()")
    assert result.returncode == 0, result.stderr
    assert re.search(r"error .*invalid ELF header|error .*file too short", result.stdout)
    assert "CPU library     not loaded" in result.stdout
