"""Which driver and which GPU a CUDA toolkit's code runs on.

By NVIDIA's minor version compatibility: machine code of a toolkit runs under any driver that knows
a CUDA of the same major version or a newer one. PTX is compiled by the driver, which has to know
the toolkit itself.
"""

import re

# The first Linux driver of each major version of CUDA.
RELEASES = {11: "450", 12: "525", 13: "580"}


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
        if found[3] == "a":  # of this one GPU
            fits = own == gpu
        if not is_code and toolkit and driver_cuda:
            fits = fits and _number(driver_cuda) >= _number(toolkit)
        if fits:
            fitting.append((is_code, own, name))
    return max(fitting)[2] if fitting else None


def _number(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
