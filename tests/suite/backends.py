"""Where items of the suite run: a backend of the ops, on a device or on its stand-in."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from divergences import on_capability

from mcr_fast import env
from suite import processes, tiles


@dataclass(frozen=True)
class Backend:
    """One backend: what ids call it, what the ops are told, and the process that it needs."""

    name: str
    argument: str  # backend= of the ops
    process: str | None = None  # a kind of processes.py, None for any
    limit: float = float("inf")  # the elements that a case may have: interpreters are slow
    device: str = "cpu"
    capability: str | None = None  # of the CPU library

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Ops called inside run on the backend's instruction set, or in the interpreter's tiles."""
        with contextlib.ExitStack() as stack:
            if self.capability:
                stack.enter_context(on_capability(self.capability))
            if self.process == processes.current() == "interpreted":
                stack.enter_context(tiles.small())
            yield

    def unavailable(self) -> str | None:
        """Why nothing can run on it here; None if it can."""
        if self.device == "cuda" and not torch.cuda.is_available():
            return "no GPU"
        if self.argument == "cpu" and not env.cpu_library_loaded():
            return "no compiled library"
        try:
            with self.active():
                return None
        except RuntimeError as error:
            return str(error)


CAPABILITIES = ("portable", "avx2", "avx512")
# the emulator's library stands in for the CPU's: there "cpu" is the CUDA kernels
ON_THE_HOST = (
    Backend("reference", "reference"),
    Backend("cpu", "cpu", limit=4e6),
    *(Backend(name, "cpu", capability=name, limit=4e6) for name in CAPABILITIES),
    Backend("triton", "triton", "interpreted", limit=8e3),
    Backend("cuda", "cpu", "emulated", limit=1.5e5),
)
ON_A_GPU = tuple(Backend(name, name, device="cuda") for name in ("triton", "cuda"))


def of_device(device: str) -> tuple[Backend, ...]:
    """The backends that a run with `--device` is about; in a process of a kind, that kind's."""
    if device == "cuda":
        return ON_A_GPU
    here = processes.current()
    return tuple(b for b in ON_THE_HOST if here is None or b.process == here)
