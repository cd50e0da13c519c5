"""Options that are numbers: of Python, numpy or any library that makes numbers, or 0-d tensors.

They come out as Python's int and float, so that what is stored prints, compares and pickles as
such. No library is imported for it: a number says by `__index__` or `__float__` that it is one.
"""

import math
import operator
from numbers import Complex, Real
from typing import Any, cast

import torch
from torch import Tensor


def whole(name: str, value: Any, least: int = 1, *, wanted: str = "int") -> int:
    """An int of at least `least`."""
    if type(value) is not int and not isinstance(value, torch.SymInt):
        value = _index(name, value, wanted)
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")
    return value


def finite(name: str, value: Any) -> float:
    """A finite float."""
    number = _number(name, value)
    if not -math.inf < number < math.inf:  # a compiler knows no math.isfinite
        raise ValueError(f"{name} must be finite, got {value!r}")
    return number


def positive(name: str, value: Any) -> float:
    """A finite float above 0."""
    number = _number(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be finite and above 0, got {value!r}")
    return number


def _index(name: str, value: Any, wanted: str) -> int:
    _check_scalar(name, value, wanted)
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be {wanted}, got {_described(value)}") from None


def _number(name: str, value: Any) -> float:
    if type(value) is float:
        return value
    if isinstance(value, torch.SymFloat):
        return cast(float, value)  # stays symbolic, as a compiler's shapes do
    _check_scalar(name, value, "a number")
    # A complex number of numpy has a `__float__` that drops a part of it.
    imaginary = isinstance(value, Complex) and not isinstance(value, Real)
    if imaginary or not hasattr(type(value), "__float__"):
        raise TypeError(f"{name} must be a number, got {_described(value)}")
    try:
        return float(value)
    except (TypeError, OverflowError):
        raise TypeError(f"{name} must be a number, got {_described(value)}") from None


def _check_scalar(name: str, value: Any, wanted: str) -> None:
    """Refuse what converts to a number without being one: bools, arrays, tensors elsewhere."""
    if isinstance(value, Tensor) and value.is_nested:
        raise TypeError(f"{name} must be {wanted}, got a nested tensor")
    kind = str(getattr(value, "dtype", "")).removeprefix("torch.")
    if isinstance(value, bool) or kind.startswith(("bool", "complex")):
        raise TypeError(f"{name} must be {wanted}, got {_described(value)}")
    if getattr(value, "ndim", 0) != 0:
        raise TypeError(f"{name} must be {wanted}, got {_described(value)}")
    if not isinstance(value, Tensor):
        return
    if value.requires_grad:
        raise TypeError(
            f"{name} must be {wanted}, got a tensor that requires gradients: the losses have no "
            "gradient for it; pass its value, .item()"
        )
    if value.device.type != "cpu":
        raise TypeError(
            f"{name} must be {wanted}, got a tensor on {value.device}; pass its value, .item()"
        )


def _described(value: Any) -> str:
    kind = type(value).__name__
    shape = getattr(value, "shape", ())
    return f"{kind} of shape {list(shape)}" if shape else kind
