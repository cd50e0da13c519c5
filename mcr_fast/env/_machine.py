"""The machine: its C library, processor, GPUs and their driver. Nothing here fails without them."""

import os
import platform
import re
import shutil
import subprocess
import sysconfig
import warnings
from pathlib import Path
from typing import NamedTuple

import torch

from mcr_fast import _libraries as libraries

DRIVER_FILE = Path("/proc/driver/nvidia/version")
_HIDDEN = ("", "-1", "NoDevFiles")  # values of CUDA_VISIBLE_DEVICES that leave no GPU


class Gpu(NamedTuple):
    """One that torch sees; where torch sees none, one that nvidia-smi lists."""

    name: str
    capability: str | None  # "9.0"


def glibc() -> str | None:
    """Its version; None with another C library."""
    name, version = platform.libc_ver()
    return version if name == "glibc" else None


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def driver_release() -> str | None:
    """Of the NVIDIA driver, such as "550.54.15"."""
    try:
        text = DRIVER_FILE.read_text(encoding="utf-8", errors="replace")
    except OSError:
        rows = _nvidia_smi("driver_version")
        return rows[0][0] if rows else None
    found = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", text)
    return found[1] if found else None


def seen_by_torch() -> tuple[list[Gpu], str | None]:
    """The GPUs that a CUDA torch can use, and torch's own words where it finds none."""
    if torch.version.cuda is None:
        return [], None
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            if torch.cuda.is_available():
                return [_of_torch(index) for index in range(torch.cuda.device_count())], None
        except RuntimeError as error:
            return [], str(error).splitlines()[0]
    return [], str(said[0].message).splitlines()[0] if said else None


def listed() -> list[Gpu]:
    """The GPUs of nvidia-smi, for when torch sees none; none where a variable hides them."""
    if libraries.variables().get("CUDA_VISIBLE_DEVICES") in _HIDDEN:
        return []
    found = []
    for capability, name in _nvidia_smi("compute_cap", "name"):
        known = re.fullmatch(r"\d+\.\d+", capability)
        found.append(Gpu(name, capability if known else None))
    return found


def why_triton_cannot_start() -> str | None:
    """What Triton lacks to compile its own start-up code in C, None if nothing."""
    compiler = libraries.c_compiler()
    if not any(shutil.which(name) for name in compiler):
        return f"it compiles C when it starts, and there is no compiler ({', '.join(compiler)})"
    header = Path(sysconfig.get_paths()["include"]) / "Python.h"
    return None if header.is_file() else f"it compiles C when it starts, and {header} is missing"


def _of_torch(index: int) -> Gpu:
    major, minor = torch.cuda.get_device_capability(index)
    return Gpu(torch.cuda.get_device_name(index), f"{major}.{minor}")


def _nvidia_smi(*fields: str) -> list[list[str]]:
    """A row of values for each GPU; none where it cannot be asked."""
    query = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = [line.split(", ", len(fields) - 1) for line in done.stdout.splitlines()]
    return [row for row in rows if len(row) == len(fields)]
