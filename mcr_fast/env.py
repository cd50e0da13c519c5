"""What this process can run, and why not the rest: `python -m mcr_fast.env` prints it.

Environment variables that the package reads:

- ``MCR_FAST_CHECK=1``: also run the argument checks that need a host synchronisation
- ``MCR_FAST_CPU_CAPABILITY``: use the instruction set of that name (``portable``, ``avx2``,
  ``avx512``) and not the best
- ``TRITON_INTERPRET=1`` (Triton's own): ``backend="triton"`` takes CPU tensors, interpreted, slowly
"""

import importlib.metadata
import importlib.util
import platform
import sys
import warnings

import torch

from mcr_fast._libraries import CPU_LIBRARY as CPU_LIBRARY
from mcr_fast._libraries import CUDA_LIBRARY as CUDA_LIBRARY
from mcr_fast._libraries import HOW_TO_BUILD, cpu_source
from mcr_fast._libraries import check_enabled as check_enabled
from mcr_fast._libraries import cpu_capability as cpu_capability
from mcr_fast._libraries import cpu_library_loaded as cpu_library_loaded
from mcr_fast._libraries import cuda_load_error as cuda_load_error
from mcr_fast._libraries import has_kernel as has_kernel
from mcr_fast._libraries import load_error as load_error
from mcr_fast._libraries import load_libraries as load_libraries
from mcr_fast._libraries import triton_interpreted as triton_interpreted
from mcr_fast._libraries import why_no_triton as why_no_triton
from mcr_fast._version import __version__
from mcr_fast.ops._backend import backends

if sys.argv[:1] == ["-m"]:
    # Under `python -m mcr_fast.env` the package imports this module before it runs as __main__.
    warnings.filterwarnings("ignore", "'mcr_fast.env' found in sys.modules", RuntimeWarning)


def _triton_version() -> str:
    if importlib.util.find_spec("triton") is None:
        return "not installed"
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:
        return "installed, version unknown"


def report() -> str:
    """What ``python -m mcr_fast.env`` prints."""
    lines = [
        f"mcr_fast        {__version__}",
        f"torch           {torch.__version__} (CUDA {torch.version.cuda or 'none'})",
        f"triton          {_triton_version()}",
        f"python          {platform.python_version()}, {platform.platform()}",
        f"CPU library     {cpu_source() or 'not loaded'}",
    ]
    if cpu_library_loaded():
        lines.append(f"built with      {torch.ops.mcr_fast.build_info()}")
        lines.append(f"CPU capability  {cpu_capability()}")
        lines.append(f"CUDA library    {cuda_load_error() or 'loaded'}")
    else:
        lines += [f"error           {load_error()}", f"to build        {HOW_TO_BUILD}"]
    found = backends()
    width = max(len(op) for op in found)
    lines += ["", f"{'op':<{width}}  {'CPU tensors':<11}  CUDA tensors"]
    for op, status in found.items():
        lines.append(f"{op:<{width}}  {status['serves']['cpu']:<11}  {status['serves']['cuda']}")
    reasons: dict[tuple[str, str], list[str]] = {}
    for op, status in found.items():
        for backend, reason in status["unavailable"].items():
            reasons.setdefault((backend, reason), []).append(op)
    lines += ["", "why not the others"]
    for (backend, reason), ops in reasons.items():
        concerned = "every op" if len(ops) == len(found) else ", ".join(ops)
        lines.append(f"{backend} ({concerned}): {reason}")
    return "\n".join(lines)


def main() -> None:
    """Print the report."""
    print(report())


if __name__ == "__main__":
    main()
