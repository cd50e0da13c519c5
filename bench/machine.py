"""Where and on what a result was measured."""

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from functools import cache
from pathlib import Path

import torch

import mcr_fast
from mcr_fast import env

ROOT = Path(__file__).resolve().parent.parent
CPUINFO = Path("/proc/cpuinfo")


@cache
def _cpu_fields() -> dict[str, str]:
    if not CPUINFO.exists():
        return {}
    lines = (line.split(":", 1) for line in CPUINFO.read_text().splitlines() if ":" in line)
    found: dict[str, str] = {}
    for name, value in lines:
        found.setdefault(name.strip(), value.strip())
    return found


@cache
def device() -> str:
    """The processor's model; with family and model number where the name has no number."""
    fields = _cpu_fields()
    name = fields.get("model name") or platform.processor() or platform.machine()
    name = re.sub(r"\((R|TM|C)\)|@.*|\bCPU\b|\bProcessor\b", "", name, flags=re.IGNORECASE)
    if not re.search(r"\d", name) and "cpu family" in fields:
        name = f"{name} family {fields['cpu family']} model {fields.get('model', '?')}"
    return " ".join(name.split())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """The name of this machine's results: the processor and its cores, nothing of the host."""
    slug = re.sub(r"[^a-z0-9]+", "-", device().lower()).strip("-")
    return f"{slug}-{cores()}-cores"


def _git(*arguments: str) -> str:
    try:
        return subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


@cache
def environment() -> dict[str, str]:
    """The columns that every row has."""
    # results that are being written do not change what is measured
    changed = _git("status", "--porcelain", "--", ":!bench/results")
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M"),
        "commit": _git("rev-parse", "--short=12", "HEAD"),
        "dirty": "yes" if changed else "no",
        "device": device(),
        "cores": str(cores()),
        "threads": str(torch.get_num_threads()),
        "capability": env.cpu_capability() if env.cpu_library_loaded() else "none",
        "mcr_fast": mcr_fast.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def gpu_environment(commit: str = "") -> dict[str, str]:
    """The same with the GPU in the place of the processor.

    A copy of the tree without its history takes the commit that the caller names.
    """
    import triton

    found = environment()
    major, minor = torch.cuda.get_device_capability()
    if not found["commit"]:
        found = {**found, "commit": commit, "dirty": "unknown"}
    capability = f"sm_{major}{minor}, triton {triton.__version__}"
    return {**found, "device": torch.cuda.get_device_name(), "capability": capability}


CLOCKS = (
    "clocks.sm",
    "clocks.mem",
    "temperature.gpu",
    "power.draw",
    "clocks_throttle_reasons.active",
)


def clocks() -> dict[str, str]:
    """The clock of the multiprocessors as a figure, and what else nvidia-smi reads; no setting."""
    query = [
        "nvidia-smi",
        f"--query-gpu={','.join(CLOCKS)}",
        "--format=csv,noheader,nounits",
        "-i=0",
    ]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError) as error:
        return {"unit": "MHz", "detail": f"not read: {type(error).__name__}"}
    values = [value.strip() for value in done.stdout.split(",")]
    detail = ", ".join(f"{name} {value}" for name, value in zip(CLOCKS, values, strict=False))
    return {"measured": values[0], "unit": "MHz", "detail": detail}


def load() -> float:
    """Processes that ran on average over the last minute: others' in a run that starts now."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
