"""The overloads of the ops: the compiled one is the default, Triton's is called `triton`.

Both have the same schema, fake and autograd. The Triton overload is defined here, so that it needs
no compiled library and stands beside any kernel that one has for the same device.
"""

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mcr_fast import env
from mcr_fast._process import first_time, kept
from mcr_fast.ops import TRITON_OPS
from mcr_fast.ops._schemas import SCHEMAS

LIBRARY = kept("library", lambda: torch.library.Library("mcr_fast", "FRAGMENT"))
DEFAULT, TRITON = "default", "triton"


def find(name: str, overload: str) -> Any:
    """The overload of `mcr_fast::<name>`."""
    return getattr(getattr(torch.ops.mcr_fast, name), overload)


def of_backend(name: str, backend: str) -> Any:
    """The overload of `mcr_fast::<name>` that a backend other than the reference calls."""
    return find(name, TRITON if backend == "triton" else DEFAULT)


def qualified(name: str, overload: str) -> str:
    """`mcr_fast::<name>`, and the overload's name where it has one."""
    return f"mcr_fast::{name}" if overload == DEFAULT else f"mcr_fast::{name}.{overload}"


def overloads(op: str) -> list[str]:
    """The overloads that an op has in this process, Triton's defined if it was not."""
    found = [DEFAULT] if env.cpu_library_loaded() else []
    if op in TRITON_OPS:
        for name in (f"{op}_fwd", f"{op}_bwd"):
            _define_triton(op, name)
        found.append(TRITON)
    return found


def _define_triton(op: str, name: str) -> None:
    if not first_time(f"define {name}.{TRITON}"):
        return
    LIBRARY.define(f"{name}.{TRITON}{SCHEMAS[name]}")
    kernel = _lazy_kernel(op, name)
    LIBRARY.impl(f"{name}.{TRITON}", kernel, "CUDA")
    if env.triton_interpreted():
        LIBRARY.impl(f"{name}.{TRITON}", kernel, "CPU")


def _lazy_kernel(op: str, name: str) -> Callable[..., Any]:
    """The launcher `<name>` of `mcr_fast.kernels.<op>`, imported when it is first called."""

    def kernel(*args: Any) -> Any:
        launch = getattr(importlib.import_module(f"mcr_fast.kernels.{op}"), name)
        # kernels start on the current stream of the tensors' own device; for CPU tensors a no-op
        with torch.cuda.device_of(_first_tensor(args)):
            return launch(*args)

    return kernel


def _first_tensor(args: tuple[Any, ...]) -> Tensor:
    first = args[0]
    return first if isinstance(first, Tensor) else args[1]
