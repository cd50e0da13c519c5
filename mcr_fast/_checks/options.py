"""Checks of options: Python values that have a known set or a range."""

import itertools
from collections.abc import Mapping
from typing import Any, get_args

from mcr_fast._names import (
    BACKENDS,
    CLEAN_PATHS,
    DIVERGENCES,
    OF_SOFTMAX,
    STRATEGIES,
    SUBSETS,
    Exclude,
    choice,
)
from mcr_fast._numbers import whole


def latent_dims(value: Any) -> tuple[int, ...]:
    """At least two widths, of any one-dimensional collection that has an order."""
    ordered = hasattr(value, "__len__") and hasattr(value, "__getitem__")
    if not ordered or isinstance(value, (str, bytes, Mapping)) or getattr(value, "ndim", 1) != 1:
        raise TypeError(f"latent_dims must be a list of widths, one a modality, got {value!r}")
    if len(value) < 2:
        raise ValueError(f"latent_dims must hold at least 2 modalities, got {list(value)}")
    return tuple(whole("latent_dims", width) for width in value)


def divergence_options(
    strategy: object, clean_path: object, divergence: object, exclude: object, backend: object
) -> None:
    """The options of the regularizer."""
    choice("strategy", strategy, STRATEGIES)
    choice("clean_path", clean_path, CLEAN_PATHS)
    choice("divergence", divergence, DIVERGENCES)
    choice("exclude", exclude, (None, *get_args(Exclude)))
    known_backend(backend)


def known_backend(backend: object) -> None:
    """A backend's name, or None for the best one."""
    choice("backend", backend, (None, *BACKENDS))


def enough_classes(num_classes: int, divergence: str) -> None:
    """Logits that the divergence can tell apart."""
    if num_classes == 1 and divergence in OF_SOFTMAX:
        raise ValueError(
            f"num_classes must be at least 2 for divergence={divergence!r}: the softmax of one "
            "logit is 1, whatever it is; for one logit (binary or multi-label) take "
            "divergence='binary_jsd', for regression 'mse'"
        )


def subset_bits(subsets: str, num_modalities: int) -> tuple[int, ...]:
    """The bits of each subset: by size, then lexicographic."""
    choice("subsets", subsets, SUBSETS)
    largest = 1 if subsets == "single" else num_modalities - 1
    return tuple(
        sum(1 << m for m in subset)
        for size in range(1, largest + 1)
        for subset in itertools.combinations(range(num_modalities), size)
    )
