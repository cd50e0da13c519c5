"""Which backend serves which op."""

from typing import TypedDict

import torch

from mcr_fast import _libraries as libraries
from mcr_fast._names import BACKENDS
from mcr_fast.ops.registry import OPS, preferred


class BackendStatus(TypedDict):
    """How one op is served here."""

    serves: dict[str, str]  # device type -> backend taken when none is asked for
    unavailable: dict[str, str]  # backend -> why it cannot be had


def _why_unavailable(op: str) -> dict[str, str]:
    row = OPS[op]
    if row.made_of:
        return _why_unavailable(row.made_of)
    not_loaded = {
        "triton": libraries.why_no_triton(),
        "cuda": libraries.cuda_load_error(),
        "cpu": libraries.cpu_load_error(),
    }
    missing = {}
    for backend, reason in not_loaded.items():
        if backend not in row.backends:
            missing[backend] = f"this version has no {backend} kernel for it; use backend=None"
        elif reason is not None:
            missing[backend] = reason
        elif backend != "triton" and not libraries.has_kernel(f"{op}_fwd", backend.upper()):
            missing[backend] = (
                f"the library that is loaded has no kernel for it; {libraries.HOW_TO_BUILD}"
            )
    return missing


libraries.load_libraries()
_UNAVAILABLE = {op: _why_unavailable(op) for op in OPS}


def resolve(
    op: str,
    backend: str | None,
    device: torch.device,
    *dtypes: torch.dtype,
    size: int | None = None,
    modalities: int = 0,
) -> str:
    """The backend to run ``op`` with, for tensors of these dtypes on ``device``.

    ``None`` takes the best one for them. The ``size`` is what `CHOICE` counts.

    Raises:
        ValueError: for a name that is not a backend; more classes or modalities than it takes.
        RuntimeError: for a backend that is missing, or that cannot take these tensors.
    """
    op = OPS[op].made_of or op
    most = OPS[op].max_modalities
    if backend is None:
        if most is not None and modalities > most:
            return "reference"
        return _best(op, device, dtypes, size)
    if backend not in BACKENDS:
        known = ", ".join(repr(name) for name in BACKENDS)
        raise ValueError(f"backend must be None or one of {known}, got {backend!r}")
    if backend in _UNAVAILABLE[op]:
        reason = _UNAVAILABLE[op][backend]
        raise RuntimeError(f"backend={backend!r} is not available for {op}: {reason}")
    _check_device(op, backend, device)
    if backend in ("triton", "cuda") and torch.float64 in dtypes:
        raise RuntimeError(
            f"backend={backend!r} of {op} computes in float32, got float64 tensors; "
            "use backend='reference' or None"
        )
    if size is not None and not _fits(op, backend, size):
        raise ValueError(
            f"backend={backend!r} of {op} takes at most {OPS[op].max_classes[backend]} classes, "
            f"got {size}; use backend=None or 'reference'"
        )
    if backend != "reference" and most is not None and modalities > most:
        raise ValueError(
            f"backend={backend!r} takes at most {most} modalities, got {modalities}; "
            "use backend=None or 'reference'"
        )
    return backend


def _best(op: str, device: torch.device, dtypes: tuple[torch.dtype, ...], size: int | None) -> str:
    missing = _UNAVAILABLE[op]
    if device.type == "cpu":
        return "reference" if "cpu" in missing else "cpu"
    # they compute in float32
    if device.type == "cuda" and torch.float64 not in dtypes:
        sixteen_bit = any(dtype.itemsize == 2 for dtype in dtypes)
        for name in preferred(op, size, sixteen_bit=sixteen_bit):
            # interpreted kernels are for tests that ask for them
            interpreted = name == "triton" and libraries.triton_interpreted()
            if name not in missing and _fits(op, name, size) and not interpreted:
                return name
    return "reference"


def _fits(op: str, backend: str, size: int | None) -> bool:
    most = OPS[op].max_classes.get(backend)
    return most is None or size is None or size <= most


def _check_device(op: str, backend: str, device: torch.device) -> None:
    if backend == "reference":
        return
    interpreted = backend == "triton" and libraries.triton_interpreted()
    wanted = "CPU" if backend == "cpu" or interpreted else "CUDA"
    if device.type == wanted.lower():
        return
    way_out = f"move them to the {wanted} device or use backend=None"
    if backend == "triton":
        way_out = "use backend=None"
        if not interpreted:
            way_out += ", or set TRITON_INTERPRET=1 to interpret the kernels"
    raise RuntimeError(
        f"backend={backend!r} of {op} takes {wanted} tensors, got tensors on {device}; {way_out}"
    )


def backends() -> dict[str, BackendStatus]:
    """Which backend serves which op here, and why not the others.

    Returns:
        For every op, ``"serves"``: the backend taken for tensors of a device type when none is
        asked for, and ``"unavailable"``: the reason for each backend that cannot be had.

    Example:
        >>> import mcr_fast
        >>> sorted(mcr_fast.backends()["nt_xent"])
        ['serves', 'unavailable']
    """
    return {
        op: {
            "serves": {kind: resolve(op, None, torch.device(kind)) for kind in ("cpu", "cuda")},
            "unavailable": dict(_UNAVAILABLE[op]),
        }
        for op in OPS
    }
