"""Python's numbers as tensors on a device, made once each."""

import torch
from torch import Tensor

_MOST = 256  # more are a sign that no step is like another


class Numbers:
    """0-d tensors of numbers, kept: making one anew would wait for a device, or start a kernel."""

    def __init__(self) -> None:
        self._kept: dict[tuple[float, torch.device], Tensor] = {}

    def of(self, value: float, like: Tensor) -> Tensor:  # []
        """A number on the device of a tensor; not to be written to."""
        key = value, like.device
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= _MOST:
                self._kept.clear()
            found = self._kept[key] = torch.full((), value, device=like.device)
        return found
