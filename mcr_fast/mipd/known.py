"""Steps that are like an earlier one in all that the checks look at, and so need none."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from mcr_fast.fusion import unread_layer
from mcr_fast.ops._modes import recorded

_MOST = 64  # forms of one loss; more are a sign that no step is like another
_COUNTABLE = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)


class KnownForms:
    """The forms of batches that the op of a whole step has taken, and the backend of each.

    A form is what the checks of a step look at: types, shapes, dtypes and devices of the tensors,
    and the options. Copies of a loss begin with none.
    """

    def __init__(self) -> None:
        self._backends: dict[tuple[Any, ...], str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return KnownForms, ()

    def backend(self, form: tuple[Any, ...]) -> str | None:
        """The backend of a form, None if it is not known."""
        return self._backends.get(form)

    def add(self, form: tuple[Any, ...], backend: str) -> None:
        """A batch of this form was checked, and served."""
        if len(self._backends) >= _MOST:
            self._backends.clear()
        self._backends[form] = backend


def form_of(
    latents: Any, labels: Any, fusion: object, latent_dims: tuple[int, ...], *options: Any
) -> tuple[nn.Linear, tuple[Any, ...]] | None:
    """The layer of a linear fusion, and the form of a step.

    None where its checks depend on more than that, or where operations are recorded.
    """
    layer = unread_layer(fusion, latent_dims)
    if layer is None or type(latents) not in (list, tuple) or recorded():
        return None
    if forward_ad._current_level >= 0 or torch._C._is_any_autocast_enabled():
        return None
    weight, bias = layer.weight, layer.bias
    # the op of a known step gets its tensors as they are, and other dtypes are converted for it
    if weight.dtype.itemsize == 2 or (bias is not None and bias.dtype != weight.dtype):
        return None
    tensors = [*latents, weight, bias]
    if labels is not None:
        tensors.append(labels)
        if not isinstance(labels, Tensor) or labels.dtype not in _COUNTABLE:
            return None
    forms = []
    for x in tensors:
        if isinstance(x, Tensor):
            if x.is_nested:  # which has no shape
                return None
            forms.append((type(x), x.layout, x.dtype, x.shape, x.device))
    return layer, (len(latents), len(tensors), latent_dims, *options, *forms)
