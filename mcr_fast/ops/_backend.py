"""Which backend serves which op."""

from typing import Any, TypedDict

import torch

from mcr_fast import _libraries as libraries
from mcr_fast._cuda_code import capabilities_served
from mcr_fast._names import BACKENDS
from mcr_fast.ops._limits import Call
from mcr_fast.ops.registry import BLOCKS, OPS, kernel_of, preferred, row_of


class BackendStatus(TypedDict):
    """How one op is served here."""

    serves: dict[str, str]  # device type -> backend taken when none is asked for
    unavailable: dict[str, str]  # backend -> why it cannot be had


def _why_unavailable(op: str) -> dict[str, str]:
    row = row_of(op)
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
            of_gpus = (name for name in row.backends if "cpu" not in (name, backend))
            other = next(of_gpus, "reference")
            missing[backend] = f"it has no {backend} kernel; use backend={other!r} or None"
        elif reason is not None:
            missing[backend] = reason
        elif backend != "triton" and not libraries.has_kernel(kernel_of(op), backend.upper()):
            missing[backend] = (
                f"the library that is loaded has no kernel for it; {libraries.HOW_TO_BUILD}"
            )
    return missing


libraries.load_libraries()
_UNAVAILABLE = {op: _why_unavailable(op) for op in (*OPS, *BLOCKS)}
# What GPUs the CUDA library has code for, None where that is not known: on others a launch fails.
_CAPABILITIES = None if libraries.cuda_load_error() else capabilities_served(libraries.CUDA_LIBRARY)

_NOT_KNOWN = Call()


def resolve(
    op: str,
    backend: str | None,
    device: torch.device,
    *dtypes: torch.dtype,
    call: Call = _NOT_KNOWN,
) -> str:
    """The backend to run ``op`` with, for tensors of these dtypes on ``device``.

    ``None`` takes the best one of those that take the call.

    Raises:
        ValueError: for a name that is not a backend; a call that the backend does not take.
        RuntimeError: for a backend that is missing, or that cannot take these tensors.
    """
    op = row_of(op).made_of or op
    if backend is None:
        return _best(op, device, dtypes, call)
    if backend not in BACKENDS:
        known = ", ".join(repr(name) for name in BACKENDS)
        raise ValueError(f"backend must be None or one of {known}, got {backend!r}")
    if backend in _UNAVAILABLE[op]:
        reason = _UNAVAILABLE[op][backend]
        raise RuntimeError(f"backend={backend!r} is not available for {op}: {reason}")
    _check_device(op, backend, device)
    if backend == "cuda" and not has_code(device):
        raise RuntimeError(
            f"backend='cuda' of {op}: the CUDA library has no code for {device} under this driver "
            "(`python -m mcr_fast.env` says for which GPUs); use backend=None"
        )
    if backend in ("triton", "cuda") and torch.float64 in dtypes:
        raise RuntimeError(
            f"backend={backend!r} of {op} computes in float32, got float64 tensors; "
            "use backend='reference' or None"
        )
    refusal = row_of(op).refusal(backend, call)
    if refusal is not None:
        raise ValueError(
            f"backend={backend!r} of {op} takes {refusal[0]}, got {refusal[1]}; "
            f"use backend={_other(op, backend, device, call)!r} or None"
        )
    return backend


def shared_memory(device: torch.device) -> int | None:
    """Bytes that a block of a GPU may have of it; None where no kernel of ours asks for much."""
    missing = "cuda" in _UNAVAILABLE["permuted_divergence"]
    if device.type != "cuda" or missing or not torch.cuda.is_available():
        return None
    of_device: Any = torch.cuda.get_device_properties(device)  # torch's stubs lack this one
    most: int = of_device.shared_memory_per_block_optin
    return most


def has_code(device: torch.device) -> bool:
    """Whether a GPU under its driver runs what the CUDA library holds, as far as that is known.

    It starts CUDA in no process that has not: a fork could not use it then.
    """
    if _CAPABILITIES is None or device.type != "cuda" or not torch.cuda.is_initialized():
        return True
    found: Any = torch.cuda.get_device_properties(device)
    return (found.major, found.minor) in _CAPABILITIES


def can_take(op: str, backend: str, call: Call) -> bool:
    """Whether a backend is here and takes a call, of tensors that its kernels read."""
    return backend not in _UNAVAILABLE[op] and row_of(op).refusal(backend, call) is None


def _best(op: str, device: torch.device, dtypes: tuple[torch.dtype, ...], call: Call) -> str:
    if device.type == "cpu":
        return "cpu" if can_take(op, "cpu", call) else "reference"
    # they compute in float32
    if device.type == "cuda" and torch.float64 not in dtypes:
        sixteen_bit = any(dtype.itemsize == 2 for dtype in dtypes)
        for name in (*preferred(op, call.size, sixteen_bit=sixteen_bit), "triton", "cuda"):
            # interpreted kernels are for tests that ask for them
            interpreted = name == "triton" and libraries.triton_interpreted()
            if interpreted or not can_take(op, name, call):
                continue
            if name != "cuda" or has_code(device):
                return name
    return "reference"


def _other(op: str, backend: str, device: torch.device, call: Call) -> str:
    """The backend of this device whose kernels take what another one refuses, here or not."""
    for name in ("triton", "cuda") if device.type == "cuda" else ("cpu",):
        kernels = name != backend and name in row_of(op).backends
        if kernels and row_of(op).refusal(name, call) is None:
            return name
    return "reference"


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
        asked for, and ``"unavailable"``: the reason for each backend that cannot be had. Of CUDA
        it speaks for the current device, and before CUDA is started in this process, which it does
        not do, as though the CUDA library had code for that.

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
