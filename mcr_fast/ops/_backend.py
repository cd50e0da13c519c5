"""Which backend serves which op."""

from __future__ import annotations

from typing import TypedDict

import torch

from mcr_fast import env
from mcr_fast.ops import OPS

BACKENDS = ("reference", "cpu", "triton", "cuda")


class BackendStatus(TypedDict):
    """How one op is served here."""

    serves: dict[str, str]  # device type -> backend taken when none is asked for
    unavailable: dict[str, str]  # backend -> why it cannot be had


def _why_unavailable(op: str) -> dict[str, str]:
    missing = {
        "triton": "this version has no Triton kernels; use backend=None",
    }
    if env.cuda_load_error() is not None:
        missing["cuda"] = str(env.cuda_load_error())
    elif not env.has_kernel(f"{op}_fwd", "CUDA"):
        missing["cuda"] = "this version has no CUDA kernel for it; use backend=None"
    if not env.cpu_library_loaded():
        missing["cpu"] = f"no compiled library ({env.load_error()}); {env.HOW_TO_BUILD}"
    elif not env.has_kernel(f"{op}_fwd", "CPU"):
        missing["cpu"] = f"the library that is loaded has no kernel for it; {env.HOW_TO_BUILD}"
    return missing


env.load_libraries()
_UNAVAILABLE = {op: _why_unavailable(op) for op in OPS}


def resolve(op: str, backend: str | None, device: torch.device) -> str:
    """The backend to run ``op`` with, for tensors on ``device``.

    ``None`` takes the best one for the device.

    Raises:
        ValueError: for a name that is not a backend.
        RuntimeError: for a backend that is missing, or that cannot take tensors of this device.
    """
    missing = _UNAVAILABLE[op]
    if backend is None:
        own = device.type if device.type in ("cpu", "cuda") else "reference"
        return "reference" if own in missing else own
    if backend not in BACKENDS:
        known = ", ".join(repr(name) for name in BACKENDS)
        raise ValueError(f"backend must be None or one of {known}, got {backend!r}")
    if backend in missing:
        raise RuntimeError(f"backend={backend!r} is not available for {op}: {missing[backend]}")
    if backend in ("cpu", "cuda") and device.type != backend:
        name = backend.upper()
        raise RuntimeError(
            f"backend={backend!r} of {op} takes {name} tensors, got tensors on {device}; "
            f"move them to the {name} device or use backend=None"
        )
    return backend


def backends() -> dict[str, BackendStatus]:
    """Which backend serves which op here, and why not the others.

    Returns:
        For every op, ``"serves"``: the backend taken for tensors of a device type when none is
        asked for, and ``"unavailable"``: the reason for each backend that cannot be had.

    Example:
        >>> import mcr_fast
        >>> mcr_fast.backends()["nt_xent"]["serves"]["cuda"]
        'reference'
    """
    return {
        op: {
            "serves": {kind: resolve(op, None, torch.device(kind)) for kind in ("cpu", "cuda")},
            "unavailable": dict(_UNAVAILABLE[op]),
        }
        for op in OPS
    }
