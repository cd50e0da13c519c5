"""What the row loops of the CPU become on aarch64: NEON's vectors. Cross-compiled, not run."""

import platform
import re
import shutil

import pytest
from wheels import run

pytestmark = pytest.mark.slow

# Of float64, where each lane is a call, and what the compiler makes of copies.
LIBRARY = {"exp2", "log2", "log1p", "expm1", "memcpy", "memset", "memmove"}


@pytest.fixture(scope="module")
def assembly(tmp_path_factory):
    """The loops' instructions, compiled as CMakeLists.txt does it for this instruction set."""
    compiler = "c++" if platform.machine() == "aarch64" else "aarch64-linux-gnu-g++"
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    path = tmp_path_factory.mktemp("aarch64") / "kernels.s"
    flags = "-std=c++17 -O3 -fPIC -fvisibility=hidden -ffp-contract=fast -Wall -Werror -Wno-psabi"
    definitions = ("-DMCR_ISA=portable", "-DMCR_VEC_BYTES=16", "-Icsrc")
    result = run(compiler, *flags.split(), *definitions, "-S", "csrc/kernels.cpp", "-o", str(path))
    assert result.returncode == 0, result.stderr
    return path.read_text()


def test_sums_of_products_are_vectors(assembly):
    vectors = len(re.findall(r"\tfml[as]\tv\d+\.4s", assembly))
    scalars = len(re.findall(r"\tfn?m(?:add|sub)\ts\d+", assembly))
    assert vectors > 10 * scalars, f"{vectors} of four floats, {scalars} of one"


def test_float32_calls_no_library(assembly):
    called = set(re.findall(r"\tbl\t(\w+)", assembly))
    foreign = {name for name in called if not name.startswith("_ZN3mcr")}
    assert foreign <= LIBRARY
