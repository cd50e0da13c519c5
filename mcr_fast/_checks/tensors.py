"""Checks of one tensor, or of one a modality: type, dtype, shape, device."""

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from mcr_fast._libraries import check_enabled
from mcr_fast.ops._modes import autocast_enabled, holds_values, recorded

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TENSOR_TYPES = (Tensor, torch.nn.Parameter)
# Subclass -> its article, and what to pass instead.
_OTHER_TENSORS = {
    "DTensor": ("a", "x.to_local() or x.full_tensor()"),
    "MaskedTensor": ("a", "x.get_data(), and the mask as `present`"),
    "NestedTensor": ("a", "x.to_padded_tensor(0.0), or rows of one length"),
}


def may_read(x: Tensor) -> bool:
    """Whether a check may look at the values: free on the CPU, a synchronisation elsewhere."""
    if recorded() or not holds_values(x):
        return False
    return x.is_cpu or check_enabled()


def no_infinite_logits(name: str, x: Tensor | None) -> None:
    """With MCR_FAST_CHECK=1: name the infinite logits that would come out as NaN."""
    if x is None or not (check_enabled() and may_read(x)) or not x.isinf().any():
        return
    raise ValueError(
        f"{name} holds infinite logits, and their divergence is NaN; mask with a large finite "
        "number such as -1e9 instead: rows that agree in a masked class add nothing to it"
    )


def plain_tensor(name: str, x: Any) -> Tensor:
    """A tensor of this process."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if type(x) not in _TENSOR_TYPES:
        _refuse_subclass(name, x)
    if x.layout is not torch.strided or x.is_quantized or x.is_nested:
        _refuse_storage(name, x)
    return x


def _refuse_subclass(name: str, x: Tensor) -> None:
    """Raise for the subclasses that the losses cannot see as one dense tensor."""
    # By name: the package does not import what makes them.
    for kind in type(x).__mro__:
        if kind.__name__ in _OTHER_TENSORS:
            article, way_out = _OTHER_TENSORS[kind.__name__]
            raise TypeError(
                f"{name} must be a plain tensor, got {article} {kind.__name__}; pass {way_out}"
            )


def _refuse_storage(name: str, x: Tensor) -> NoReturn:
    if x.is_nested:
        raise TypeError(
            f"{name} must be a dense tensor, got a nested one; pass x.to_padded_tensor(0.0) and "
            "what `present` masks, or rows of one length"
        )
    if x.is_quantized:
        raise TypeError(f"{name} must be a float tensor, got a quantized one; pass x.dequantize()")
    raise TypeError(f"{name} must be a dense tensor, got layout {x.layout}; pass x.to_dense()")


def float_tensor(name: str, x: Any) -> Tensor:
    """A tensor of one of the float dtypes the losses take."""
    plain_tensor(name, x)
    if x.dtype not in FLOAT_DTYPES:
        known = ", ".join(str(dtype) for dtype in FLOAT_DTYPES)
        raise TypeError(f"{name} must have one of the dtypes {known}, got {x.dtype}")
    return x


def shaped(name: str, x: Tensor, shape: tuple[int, ...], letters: str) -> None:
    """A tensor of exactly this shape."""
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {letters} = {list(shape)}, got {list(x.shape)}")


def on_device(name: str, x: Tensor, device: torch.device, of: str) -> None:
    """A tensor beside the others."""
    if x.device != device:
        raise ValueError(f"{name} must be on {device} like {of}, got {x.device}")


def modalities(name: str, tensors: Any) -> list[Tensor]:
    """At least two float tensors of one batch: same first dimension, same device."""
    if isinstance(tensors, (Tensor, str)) or not isinstance(tensors, Sequence):
        raise TypeError(
            f"{name} must be a list of tensors, one a modality, got {type(tensors).__name__}"
        )
    if len(tensors) < 2:
        raise ValueError(f"{name} must hold at least 2 modalities, got {len(tensors)}")
    first = tensors[0]
    if all(
        type(x) in _TENSOR_TYPES
        and x.layout is torch.strided
        and not x.is_nested
        and x.dtype in FLOAT_DTYPES
        and x.ndim >= 2
        and x.shape[0] == first.shape[0]
        and x.device == first.device
        for x in tensors
    ):
        return list(tensors)
    for m, x in enumerate(tensors):
        float_tensor(f"{name}[{m}]", x)
        if x.ndim < 2:
            raise ValueError(f"{name}[{m}] must have shape [N, ..., D], got {list(x.shape)}")
        if x.shape[0] != tensors[0].shape[0]:
            raise ValueError(
                f"{name}[{m}] must have {tensors[0].shape[0]} rows like {name}[0], got {x.shape[0]}"
            )
        on_device(f"{name}[{m}]", x, tensors[0].device, f"{name}[0]")
    return list(tensors)


def same_form(name: str, tensors: Sequence[Tensor], letters: str) -> None:
    """2-D tensors that can be stacked: one shape and one dtype.

    Under autocast of several dtypes: there torch's own operations take the widest, so do we.
    """
    first = tensors[0]
    if all(x.ndim == 2 and x.shape == first.shape and x.dtype == first.dtype for x in tensors):
        return
    for m, x in enumerate(tensors):
        if x.ndim != 2:
            raise ValueError(f"{name}[{m}] must have shape {letters}, got {list(x.shape)}")
        shaped(f"{name}[{m}]", x, tuple(tensors[0].shape), f"{letters} of {name}[0]")
        if x.dtype != tensors[0].dtype and not autocast_enabled(x.device):
            raise TypeError(
                f"{name}[{m}] must be {tensors[0].dtype} like {name}[0], got {x.dtype}; convert "
                "one of them, as with .float()"
            )
