"""What is built: the symbols of the library and the contents of the wheels."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

import mcr_fast
from mcr_fast import env

ROOT = Path(__file__).resolve().parent.parent

needs_library = pytest.mark.skipif(not env.cpu_library_loaded(), reason="no compiled library")


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


def setup_py(**variables: str) -> subprocess.CompletedProcess[str]:
    return run(sys.executable, "setup.py", "--version", **variables)


# The library


@needs_library
def test_library_needs_no_python():
    dynamic = binutils("readelf", "-d", str(env.CPU_LIBRARY))
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic)
    assert "libtorch_cpu.so" in needed
    assert not [name for name in needed if "python" in name]
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic


@needs_library
def test_library_uses_the_stable_abi_only():
    undefined = re.findall(r"\bU (\S+)", binutils("nm", "-D", str(env.CPU_LIBRARY)))
    assert [name for name in undefined if name.startswith("aoti_torch_")]
    assert not [name for name in undefined if re.match(r"_?Py[A-Z_]", name)]
    # Mangled names in the namespaces of torch: its C++ ABI changes with every release.
    assert not [name for name in undefined if re.match(r"_Z\w*?(2at|3c10|5torch)\d", name)]


@needs_library
def test_library_exports_nothing_of_its_own():
    defined = binutils("nm", "-D", "--defined-only", str(env.CPU_LIBRARY))
    assert not re.findall(r"\S*3mcr\S*", defined)


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
    return run(sys.executable, "-c", assertion + code, cwd=target, PYTHONPATH=str(target))


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


EMBEDDINGS = "torch.linspace(-1, 1, 48).sin().reshape(2, 6, 4)"
NT_XENT = f"mcr_fast.functional.nt_xent(list({EMBEDDINGS}), torch.arange(6) % 3).item()"


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


@needs_library
def test_compiled_wheel(tmp_path):
    wheel = build_wheel(ROOT, tmp_path / "dist", "cpu")
    assert re.search(r"-py3-none-(?!any)\w+\.whl$", wheel.name)
    target = unpack(wheel, tmp_path / "site")
    names = {str(path.relative_to(target)) for path in target.rglob("*") if path.is_file()}
    assert {
        "mcr_fast/py.typed",
        "mcr_fast/kernels/__init__.py",
        "mcr_fast/reference/__init__.py",
        f"mcr_fast/lib/{env.CPU_LIBRARY.name}",
    } <= names
    assert not [name for name in names if name.startswith(("kernels/", "csrc/", "tests/"))]
    result = run_installed(
        target,
        "import torch, mcr_fast.kernels; print(mcr_fast.env.report()); " + f"print({NT_XENT})",
    )
    assert result.returncode == 0, result.stderr
    assert f"CPU library     {target}/mcr_fast/lib/" in result.stdout
    assert result.stderr == ""
