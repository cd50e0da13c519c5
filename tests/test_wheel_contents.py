"""What stands in a wheel with compiled libraries, and what those need from the machine they run on.

It reads the wheel that `--wheel` names (`make wheel-test` names the released kind), or builds one.
"""

import os
import platform
import re
import sys
import zipfile
from pathlib import Path

import pytest
from wheels import (
    CUDA_LIBRARY,
    NT_XENT,
    ROOT,
    TORCH_LIBRARIES,
    binutils,
    build_wheel,
    check_library,
    run,
    run_installed,
    unpack,
)

import mcr_fast
from mcr_fast import env

pytestmark = pytest.mark.slow

MAX_BYTES = 12 * 2**20
# The platform of torch's own wheels: glibc 2.28, libstdc++ and libgcc of GCC 8.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11), "GCC": (8, 0, 0)}


@pytest.fixture(scope="session")
def wheel(request, tmp_path_factory):
    given = request.config.getoption("--wheel")
    if given is None and not env.cpu_library_loaded():
        pytest.skip("no compiled library")
    return Path(given) if given else build_wheel(ROOT, tmp_path_factory.mktemp("dist"), "cpu")


@pytest.fixture(scope="session")
def site(wheel, tmp_path_factory):
    """Where the wheel lies unpacked."""
    return unpack(wheel, tmp_path_factory.mktemp("site"))


def library_of(site: Path, name: str) -> Path:
    path = site / "mcr_fast" / "lib" / name
    if not path.is_file() and name == CUDA_LIBRARY:
        pytest.skip("a wheel without CUDA kernels")
    return path


def machine_of(wheel: Path) -> str:
    """Another one than this where `make wheel-aarch64` made it."""
    named = re.search(r"_(x86_64|aarch64)\.whl$", wheel.name)
    return named[1] if named else platform.machine()


def test_tag_is_for_any_python(wheel, request):
    machine = machine_of(wheel)
    oldest = r"manylinux_2_(?:1?\d|2[0-8])"
    kind = oldest if request.config.getoption("--wheel") else "linux"
    assert re.fullmatch(
        rf"mcr_fast-{re.escape(mcr_fast.__version__)}-py3-none-{kind}_{machine}\.whl", wheel.name
    )
    with zipfile.ZipFile(wheel) as archive:
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/WHEEL"))
        tags = re.findall(r"^Tag: (.*)$", archive.read(metadata).decode(), re.MULTILINE)
    assert tags == [wheel.stem.split("-", 2)[2]]


def test_size(wheel):
    assert wheel.stat().st_size <= MAX_BYTES


def test_holds_the_package_and_the_libraries_only(site):
    expected = {str(path.relative_to(ROOT)) for path in (ROOT / "mcr_fast").rglob("*.py")}
    expected |= {f"mcr_fast/{p.relative_to(ROOT)}" for p in (ROOT / "kernels").rglob("*.py")}
    expected |= {"mcr_fast/py.typed", f"mcr_fast/lib/{env.CPU_LIBRARY.name}"}
    found = {str(path.relative_to(site)) for path in site.rglob("*") if path.is_file()}
    found = {name for name in found if ".dist-info/" not in name}
    assert found - {f"mcr_fast/lib/{CUDA_LIBRARY}"} == expected


@pytest.mark.parametrize("name", TORCH_LIBRARIES)
def test_needs_torch_and_the_runtime_only(site, name):
    check_library(library_of(site, name))


@pytest.mark.parametrize("name", TORCH_LIBRARIES)
def test_asks_for_old_versions_of_the_runtime_only(site, name):
    symbols = binutils("nm", "-D", str(library_of(site, name)))
    asked = set(re.findall(r"@(GLIBC|GLIBCXX|CXXABI|GCC)_([\d.]+)\b", symbols))
    assert {family for family, _ in asked} >= {"GLIBC", "GLIBCXX", "CXXABI"}
    assert not [
        f"{family}_{version}"
        for family, version in asked
        if tuple(int(part) for part in version.split(".")) > NEWEST[family]
    ]


@pytest.mark.parametrize("name", TORCH_LIBRARIES)
def test_exports_nothing(site, name):
    assert not binutils("nm", "-D", "--defined-only", str(library_of(site, name)))


def test_driver_floor(wheel, site):
    """WHEEL_CUDA as the Makefile has it: 13 for a library as nvcc 13 makes it."""
    library_of(site, CUDA_LIBRARY)
    described = run(sys.executable, str(ROOT / ".ci/describe-wheel"), str(wheel))
    assert described.returncode == 0, described.stderr
    floor = 580 if os.environ.get("WHEEL_CUDA") == "13" else 525
    assert f"driver {floor}" in described.stdout, described.stdout


def expected_architectures() -> set[str]:
    """What TORCH_CUDA_ARCH_LIST asks for, else what setup.py gives every wheel."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST", "all")
    if wanted == "all":
        text = (ROOT / "setup.py").read_text()
        wanted = re.search(r'^WHEEL_ARCHITECTURES = "(.*)"$', text, re.MULTILINE)[1]
    expected = set()
    for entry in re.split(r"[\s;,]+", wanted):
        number, plus, _ = entry.replace(".", "").partition("+")
        expected |= {f"sm_{number}", f"compute_{number}"} if plus else {f"sm_{number}"}
    return expected


def test_cuda_architectures_and_spills(wheel, site):
    library_of(site, CUDA_LIBRARY)
    described = run(sys.executable, str(ROOT / ".ci/describe-wheel"), str(wheel))
    assert described.returncode == 0, described.stderr
    if "cuobjdump was not found" in described.stdout:
        pytest.skip("cuobjdump is not installed")
    (found, spills) = re.search(rf"{CUDA_LIBRARY} .*: (.*); (.*)", described.stdout).groups()
    assert set(found.split()) == expected_architectures()
    assert re.fullmatch(r"spills in 0 of [1-9]\d* kernels", spills)


def test_works_where_it_is_unpacked(wheel, site):
    if machine_of(wheel) != platform.machine():
        pytest.skip("a wheel for another machine")
    result = run_installed(
        site, f"import torch, mcr_fast.kernels; print(mcr_fast.env.report()); print({NT_XENT})"
    )
    assert f"CPU library     {site}/mcr_fast/lib/" in result.stdout
    assert result.stderr == ""
