"""Which backend serves which op."""

from __future__ import annotations

from typing import TypedDict

import torch

from mcr_fast import env
from mcr_fast.ops import OPS, TRITON_OPS

BACKENDS = ("reference", "cpu", "triton", "cuda")
# Classes that the divergences' kernels take: they keep whole rows in registers.
DIVERGENCES = ("permuted_divergence", "row_divergence")
MAX_CLASSES = {"triton": 4096, "cuda": 65536}
# What CUDA tensors take when no backend is asked for, best first: for each op, up to which size
# (None: any), in which order. The size is the number of classes of the divergences, of rows of the
# contrastive losses, of elements of the reconstruction. A row "nt_xent 16-bit" beside that of
# "nt_xent" is for bfloat16 and float16, where they choose otherwise. NOT MEASURED yet: the kernels
# that need no compiler come first everywhere. `python -m bench gpu` prints what it would choose.
CHOICE: dict[str, tuple[tuple[int | None, tuple[str, ...]], ...]] = {
    "permuted_divergence": ((None, ("triton", "cuda")),),
    "row_divergence": ((None, ("triton", "cuda")),),
    "nt_xent": ((None, ("triton", "cuda")),),
    "sup_con": ((None, ("triton", "cuda")),),
    "reconstruction_loss": ((None, ("triton", "cuda")),),
}


def preferred(op: str, size: int | None = None, *, sixteen_bit: bool = False) -> tuple[str, ...]:
    """The backends of CUDA tensors, best first, whether they are here or not.

    Without a size, those of the smallest.
    """
    rows = CHOICE[op]
    if sixteen_bit:
        rows = CHOICE.get(f"{op} 16-bit", rows)
    for most, order in rows:
        if most is None or size is None or size <= most:
            return order
    return ()


class BackendStatus(TypedDict):
    """How one op is served here."""

    serves: dict[str, str]  # device type -> backend taken when none is asked for
    unavailable: dict[str, str]  # backend -> why it cannot be had


def _why_unavailable(op: str) -> dict[str, str]:
    missing = {}
    no_triton = env.why_no_triton()
    if op not in TRITON_OPS:
        missing["triton"] = "this version has no Triton kernel for it; use backend=None"
    elif no_triton:
        missing["triton"] = no_triton
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


def resolve(
    op: str,
    backend: str | None,
    device: torch.device,
    *dtypes: torch.dtype,
    size: int | None = None,
) -> str:
    """The backend to run ``op`` with, for tensors of these dtypes on ``device``.

    ``None`` takes the best one for them, and for a ``size`` as `CHOICE` has it.

    Raises:
        ValueError: for a name that is not a backend.
        RuntimeError: for a backend that is missing, or that cannot take these tensors.
    """
    missing = _UNAVAILABLE[op]
    if backend is None:
        return _best(op, device, dtypes, size)
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
    if backend == "triton":
        _check_triton(op, device)
    if backend in ("triton", "cuda") and torch.float64 in dtypes:
        raise RuntimeError(
            f"backend={backend!r} of {op} computes in float32, got float64 tensors; "
            "use backend='reference' or None"
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
            fits = op not in DIVERGENCES or size is None or size <= MAX_CLASSES[name]
            # interpreted kernels are for tests that ask for them
            interpreted = name == "triton" and env.triton_interpreted()
            if name not in missing and fits and not interpreted:
                return name
    return "reference"


def _check_triton(op: str, device: torch.device) -> None:
    wanted = "CPU" if env.triton_interpreted() else "CUDA"
    if device.type != wanted.lower():
        raise RuntimeError(
            f"backend='triton' of {op} takes {wanted} tensors, got tensors on {device}; "
            "use backend=None"
            + ("" if wanted == "CPU" else ", or set TRITON_INTERPRET=1 to interpret the kernels")
        )


def resolve_divergence(
    op: str, backend: str | None, device: torch.device, num_classes: int, *dtypes: torch.dtype
) -> str:
    """`resolve` for an op whose GPU kernels hold whole rows of classes.

    Raises:
        ValueError, RuntimeError: as `resolve`; more classes than the kernels asked for take.
    """
    if backend is None:
        return _best(op, device, dtypes, num_classes)
    chosen = resolve(op, backend, device, *dtypes)
    if num_classes <= MAX_CLASSES.get(chosen, num_classes):
        return chosen
    raise ValueError(
        f"backend={chosen!r} of {op} takes at most {MAX_CLASSES[chosen]} classes, got "
        f"{num_classes}; use backend=None or 'reference'"
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
