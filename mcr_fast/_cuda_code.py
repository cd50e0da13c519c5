"""What the CUDA library is compiled for, and which driver and which GPU run that.

By NVIDIA's minor version compatibility: machine code of a toolkit runs under any driver that knows
a CUDA of the same major version or a newer one. PTX is compiled by the driver, which has to know
the toolkit itself.
"""

import ctypes
import mmap
import platform
import re
from pathlib import Path

# csrc/cuda_record.cpp writes it.
_RECORD = re.compile(rb"mcr_fast CUDA library: toolkit (\d+), for ([\w -]+)\0")

# The first Linux driver of each major version of CUDA.
RELEASES = {11: "450", 12: "525", 13: "580"}
# GPUs that run no machine code but their own.
_TEGRA = {(5, 3), (6, 2), (7, 2), (8, 7), (10, 1), (11, 0)}
_MAJORS = range(32)  # of GPUs that there are and a few more


def cuda_record(library: Path) -> tuple[str, list[str]] | None:
    """The CUDA toolkit of a library and its architectures, as ("12.9", ["sm_90", "compute_90"]).

    Read from the file, for loading may be what fails; None where that does not say.
    """
    try:
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as x:
            record = _RECORD.search(x)
            found = record and (int(record[1]), record[2].decode())
    except (OSError, ValueError):  # the latter of an empty file
        return None
    if found is None:
        return None
    toolkit, words = found
    kinds = {"real": "sm", "virtual": "compute"}
    architectures = []
    for entry in words.split():
        number, _, kind = entry.partition("-")  # CMake's words: 90-real, or 90 for both
        if number[:1].isdigit():  # not CMake's "native"
            architectures += [f"{kinds[k]}_{number}" for k in kinds if kind in (k, "")]
    return (cuda_version(toolkit), architectures) if architectures else None


def cuda_version(number: int) -> str:
    """CUDA's number of a version in words: 12090 is 12.9."""
    return f"{number // 1000}.{number % 1000 // 10}"


def driver_cuda() -> str | None:
    """The newest CUDA that the driver knows, such as "12.4"; it starts nothing on a GPU."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if platform.system() == "Windows" else "libcuda.so.1")
        number = ctypes.c_int(0)
        failed = driver.cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return None if failed or number.value <= 0 else cuda_version(number.value)


def floor_of(toolkit: str) -> tuple[str, str | None]:
    """The CUDA that a driver has to know for a toolkit's code, and its first release.

    "12.0" and "525" of toolkit "12.9"; None for the release of a CUDA that is not known here.
    """
    major = int(toolkit.split(".")[0])
    return f"{major}.0", RELEASES.get(major)


def below_floor(toolkit: str, driver: str | None, cuda: str | None) -> bool:
    """Whether a driver is too old for a toolkit's code; what is not known is not too old."""
    wanted, release = floor_of(toolkit)
    if cuda is not None:
        return _number(cuda) < _number(wanted)
    return driver is not None and release is not None and _number(driver) < _number(release)


def served_by(
    capability: str, architectures: list[str] | None, toolkit: str | None, driver_cuda: str | None
) -> str | None:
    """Which of a library's architectures a GPU runs: machine code before PTX, the nearest first."""
    gpu = _number(capability)
    fitting: list[tuple[bool, tuple[int, ...], str]] = []
    for name in architectures or ():
        kind, _, rest = name.partition("_")
        found = re.fullmatch(r"(\d+)(\d)([af]?)", rest)
        if found is None:
            continue
        own = int(found[1]), int(found[2])
        is_code = kind == "sm"
        fits = own <= gpu and (not is_code and not found[3] or own[0] == gpu[0])
        if found[3] == "a" or (is_code and _TEGRA & {own, gpu}):  # of this one GPU
            fits = own == gpu
        if not is_code and toolkit and driver_cuda:
            fits = fits and _number(driver_cuda) >= _number(toolkit)
        if fits:
            fitting.append((is_code, own, name))
    return max(fitting)[2] if fitting else None


def capabilities_served(library: Path) -> frozenset[tuple[int, int]] | None:
    """The compute capabilities of the GPUs that run a library's code under the driver here.

    None where the file does not say what it holds.
    """
    record = cuda_record(library)
    if record is None:
        return None
    (toolkit, architectures), driver = record, driver_cuda()
    if below_floor(toolkit, None, driver):
        return frozenset()
    return frozenset(
        (major, minor)
        for major in _MAJORS
        for minor in range(10)
        if served_by(f"{major}.{minor}", architectures, toolkit, driver)
    )


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
