"""Loads the compiled libraries and says what is missing; the only reader of environment variables.

`mcr_fast.env` is the public side of it, and has the list of the variables.
"""

import importlib.util
import os
import sys
import warnings
from pathlib import Path

import torch

from mcr_fast._process import first_time, kept

MIN_TORCH = (2, 10)
LIBRARY_DIR = Path(__file__).resolve().parent / "lib"
CPU_LIBRARY = LIBRARY_DIR / "libmcr_fast_cpu.so"
CUDA_LIBRARY = LIBRARY_DIR / "libmcr_fast_cuda.so"
NOT_BUILT = LIBRARY_DIR / "not_built.txt"  # why, written by setup.py
HOW_TO_BUILD = (
    "run `MCR_FAST_BUILD=cpu pip install --force-reinstall --no-deps --no-cache-dir SOURCE`, where "
    "SOURCE is the source tree or mcr_fast-*.tar.gz; what is missing is then an error that names it"
    if sys.platform == "linux"
    else "use Linux: they are built nowhere else"
)
_VARIABLES = (
    *("MCR_FAST_CHECK", "MCR_FAST_CPU_CAPABILITY", "TRITON_INTERPRET"),
    *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS"),
)

_cpu_loaded = False
_cpu_source = ""  # where the ops came from
_cpu_error: str | None = None
_cuda_error: str | None = None
_attempted = False


def _namespace_defined() -> bool:
    """Whether some copy of the library has registered its ops in this process."""
    return bool(torch._C._dispatch_has_kernel("mcr_fast::build_info"))


def _torch_version() -> tuple[int, ...]:
    return tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2])


def _why_not_built() -> str:
    """What setup.py had to say about a package without libraries."""
    return NOT_BUILT.read_text(encoding="utf-8").strip() if NOT_BUILT.is_file() else "not built"


def _load(path: Path) -> str:
    """Load one library and return where its ops come from; raises OSError if that fails."""
    if _namespace_defined():
        # A second copy of the namespace would crash the process, and its ops are here already.
        return "loaded before this package was imported"
    if _torch_version() < MIN_TORCH:
        raise OSError(f"torch {torch.__version__} is too old for {path.name}: 2.10 or newer needed")
    if not path.is_file():
        raise OSError(f"{path.name} is not there: {_why_not_built()}")
    torch.ops.load_library(str(path))
    return str(path)


def load_libraries(path: Path = CPU_LIBRARY) -> None:
    """Load the compiled library once; later calls do nothing.

    Without one the package still works, through the plain-torch reference: then this warns, once,
    and says how to build it.
    """
    global _attempted, _cpu_loaded, _cpu_source, _cpu_error
    if _attempted:
        return
    _attempted = True
    try:
        _cpu_source = kept("cpu library", lambda: _load(path))
    except OSError as error:
        # torch puts the loader's own words into the cause
        _cpu_error = f"{error}: {error.__cause__}" if error.__cause__ else str(error)
        if not first_time("warned of no library"):
            return
        warnings.warn(
            f"mcr_fast runs without compiled kernels, correct but slow ({_cpu_error}). "
            f"To build them {HOW_TO_BUILD}.",
            RuntimeWarning,
            stacklevel=2,
        )
        return
    _cpu_loaded = True
    _load_cuda()
    capability = os.environ.get("MCR_FAST_CPU_CAPABILITY", "")
    if capability:
        cpu_capability(capability)


def _load_cuda(path: Path = CUDA_LIBRARY) -> None:
    """Load the CUDA kernels, which only a CUDA torch has the symbols for, or note why not."""
    global _cuda_error
    if has_kernel("permuted_divergence_fwd", "CUDA"):
        return  # registered by whoever loaded the namespace
    if torch.version.cuda is None:
        _cuda_error = f"torch {torch.__version__} is built without CUDA; use backend=None"
    elif not path.is_file():
        _cuda_error = f"{path} does not exist; build with MCR_FAST_BUILD=cuda, or use backend=None"
    else:
        try:
            torch.ops.load_library(str(path))
        except OSError as error:
            _cuda_error = f"{path.name} cannot be loaded ({error.__cause__ or error})"


def cuda_load_error() -> str | None:
    """Why the CUDA kernels are not loaded, None if they are."""
    return _cuda_error if _cpu_loaded else cpu_load_error()


def cpu_load_error() -> str | None:
    """Why the CPU kernels are not loaded and how to build them, None if they are loaded."""
    return None if _cpu_loaded else f"no compiled library ({_cpu_error}); {HOW_TO_BUILD}"


def cpu_library_loaded() -> bool:
    """Whether the compiled CPU ops exist in this process."""
    return _cpu_loaded


def load_error() -> str | None:
    """The exact reason why the CPU library is not loaded, None if it is."""
    return _cpu_error


def cpu_source() -> str:
    """Where the CPU ops come from, empty if there are none."""
    return _cpu_source


def has_kernel(name: str, dispatch_key: str) -> bool:
    """Whether op ``mcr_fast::name`` is defined and has a kernel of its own for a dispatch key."""
    qualified = f"mcr_fast::{name}"
    return bool(
        torch._C._dispatch_has_kernel(qualified)
        and torch._C._dispatch_has_kernel_for_dispatch_key(qualified, dispatch_key)
    )


def cpu_capability(request: str = "") -> str:
    """The instruction set of the CPU kernels, after switching to ``request`` if one is given.

    Raises:
        RuntimeError: if there is no library, or it or this CPU does not have that instruction set.
    """
    if not _cpu_loaded:
        raise RuntimeError(f"no compiled CPU library ({_cpu_error}); {HOW_TO_BUILD}")
    return str(torch.ops.mcr_fast.cpu_capability(request))


def variables() -> dict[str, str]:
    """The environment variables that are set and change which kernels run, or how fast."""
    return {name: os.environ[name] for name in _VARIABLES if name in os.environ}


def c_compiler() -> tuple[str, ...]:
    """The programs that Triton takes as its C compiler, the first that is there."""
    given = os.environ.get("CC")
    return tuple(given.split()[:1]) if given else ("gcc", "clang")


def check_enabled() -> bool:
    """Whether ``MCR_FAST_CHECK=1`` asks for checks that need a host synchronisation."""
    return os.environ.get("MCR_FAST_CHECK", "0") == "1"


def triton_interpreted() -> bool:
    """Whether ``TRITON_INTERPRET=1`` asks Triton to interpret its kernels, for CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_no_triton() -> str | None:
    """Why Triton kernels cannot run here, None if they can; imports nothing."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed; `pip install triton`, or use backend=None"
    if triton_interpreted() or torch.version.cuda:
        return None
    return (
        f"torch {torch.__version__} is not built for CUDA; install one that is, use backend=None, "
        "or set TRITON_INTERPRET=1 before Python starts to interpret the kernels, slowly"
    )
