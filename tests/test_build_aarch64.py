"""What the row loops of the CPU become on aarch64: NEON's vectors, compiled there or across."""

import platform
import re
import shutil

import pytest
from wheels import run

pytestmark = pytest.mark.slow

NATIVE = platform.machine() == "aarch64"
FLAGS = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=fast -Wall -Werror -Wno-psabi"
# Of float64, where each lane is a call (sqrt of a negative number alone is one), and what the
# compiler makes of copies.
LIBRARY = {"sqrt", "exp2", "log2", "log1p", "expm1", "memcpy", "memset", "memmove"}


def compile_for_aarch64(*arguments: str) -> None:
    """As CMakeLists.txt compiles for this instruction set."""
    compiler = "c++" if NATIVE else "aarch64-linux-gnu-g++"
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    result = run(compiler, *FLAGS.split(), "-Icsrc", *arguments)
    assert result.returncode == 0, result.stderr


@pytest.fixture(scope="module")
def assembly(tmp_path_factory):
    """The row loops' instructions."""
    path = tmp_path_factory.mktemp("aarch64") / "kernels.s"
    definitions = ("-DMCR_ISA=portable", "-DMCR_VEC_BYTES=16")
    compile_for_aarch64(*definitions, "-S", "csrc/kernels.cpp", "-o", str(path))
    return path.read_text()


def test_sums_of_products_are_vectors(assembly):
    vectors = len(re.findall(r"\tfml[as]\tv\d+\.4s", assembly))
    scalars = len(re.findall(r"\tfn?m(?:add|sub)\ts\d+", assembly))
    assert vectors > 10 * scalars, f"{vectors} of four floats, {scalars} of one"


def test_float32_calls_no_library(assembly):
    called = set(re.findall(r"\tbl\t(\w+)", assembly))
    foreign = {name for name in called if not name.startswith(("_ZN3mcr", "_ZZN3mcr"))}
    assert foreign <= LIBRARY


def test_functions_of_vectors(tmp_path):
    """Emulated, where this is another machine."""
    if not NATIVE and shutil.which("qemu-aarch64-static") is None:
        pytest.skip("qemu-aarch64-static is not installed")
    program = str(tmp_path / "vectors")
    compile_for_aarch64("-static", "tests/vectors.cpp", "-o", program)
    result = run(*([] if NATIVE else ["qemu-aarch64-static"]), program)
    assert result.returncode == 0, result.stdout
