"""Python's numbers as tensors on a device, made once each."""

import torch
from torch import Tensor

_MOST = 256  # more are a sign that no step is like another


class Numbers:
    """Rows of numbers, kept: making one anew would start kernels, or wait for a device."""

    def __init__(self) -> None:
        self._kept: dict[tuple[tuple[float, ...], torch.device], Tensor] = {}

    def row(self, values: tuple[float, ...], like: Tensor) -> Tensor:
        """The numbers on the device of a tensor; not to be written to."""
        key = values, like.device
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= _MOST:
                self._kept.clear()
            filled = [torch.full((), value, device=like.device) for value in values]
            found = self._kept[key] = torch.stack(filled)
        return found

    def one(self, value: float, like: Tensor) -> Tensor:  # []
        """One of them."""
        key = (value,), like.device
        found = self._kept.get(key)
        return self.row((value,), like)[0] if found is None else found[0]
