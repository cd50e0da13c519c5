"""Values of a device tensor on the host, without waiting for the device."""

from typing import Any

import torch
from torch import Tensor


def can_be_read(x: Any) -> bool:
    """Whether a tensor has values that may be asked for: not while something traces it.

    A CUDA stream that is being captured runs nothing, and what is asked of it joins the graph.
    """
    if type(x) is not Tensor or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return False  # fake tensors and other subclasses may have no values
    if torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    if x.device.type == "cuda":
        return not torch.cuda.is_current_stream_capturing()
    return x.device.type == "cpu"


class LateValues:
    """The values of one small tensor at a time: asked for now, there at some later call.

    From a CUDA device they are copied into pinned memory behind the work that computes them, and an
    event says when they have arrived. From others they are there at once; only from the CPU that
    is without waiting.
    """

    def __init__(self) -> None:
        self._values: list[float] | None = None
        self._pinned: Tensor | None = None
        self._arrival: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # an event belongs to its process; a copy of the module asks anew
        return {"_values": None, "_pinned": None, "_arrival": None}

    def ask(self, x: Tensor) -> None:
        """Start to fetch a tensor's values, in place of those that have not been taken."""
        if x.device.type != "cuda":
            self._values = x.tolist()
            return
        if self._pinned is None or self._pinned.shape != x.shape or self._pinned.dtype != x.dtype:
            self._pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
        with torch.cuda.device(x.device):
            self._pinned.copy_(x, non_blocking=True)
            self._arrival = torch.cuda.Event()
            self._arrival.record()

    @property
    def pending(self) -> bool:
        """Whether values were asked for that have not been taken."""
        return self._values is not None or self._arrival is not None

    def take(self, wait: bool = False) -> list[float] | None:
        """The values that were asked for, once; None as long as they have not arrived."""
        if wait and self._arrival is not None:
            self._arrival.synchronize()
        if self._arrival is not None and self._pinned is not None and self._arrival.query():
            self._values, self._arrival = self._pinned.tolist(), None
        values, self._values = self._values, None
        return values
