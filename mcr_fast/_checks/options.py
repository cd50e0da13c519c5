"""Checks of options: Python values that have a known set or a range."""

import itertools
from collections.abc import Mapping
from typing import Any, Literal, get_args

from mcr_fast._numbers import finite, positive, whole

__all__ = [
    "BACKENDS",
    "CLEAN_PATHS",
    "DIVERGENCES",
    "EXCLUDES",
    "STRATEGIES",
    "SUBSETS",
    "Backend",
    "CleanPath",
    "Divergence",
    "Exclude",
    "Strategy",
    "Subsets",
    "choice",
    "divergence_options",
    "finite",
    "latent_dims",
    "positive",
    "subset_masks",
    "whole",
]

Strategy = Literal["greedy", "independent", "collaborative"]
CleanPath = Literal["shared", "routed", "detached"]
Subsets = Literal["single", "all"]
Divergence = Literal["jsd", "mse", "binary_jsd"]
Exclude = Literal["self", "same_label"]
Backend = Literal["reference", "cpu", "triton", "cuda"]

STRATEGIES: tuple[str, ...] = get_args(Strategy)
CLEAN_PATHS: tuple[str, ...] = get_args(CleanPath)
SUBSETS: tuple[str, ...] = get_args(Subsets)
DIVERGENCES: tuple[str, ...] = get_args(Divergence)
EXCLUDES: tuple[str | None, ...] = (None, *get_args(Exclude))
BACKENDS: tuple[str | None, ...] = (None, *get_args(Backend))


def choice(name: str, value: object, known: tuple[str | None, ...]) -> None:
    """An option with a known set of values."""
    # An array compares by elements, and has no truth.
    if not (value is None or isinstance(value, str)) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


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
    choice("exclude", exclude, EXCLUDES)
    choice("backend", backend, BACKENDS)


def enough_classes(num_classes: int, divergence: str) -> None:
    """Logits that the divergence can tell apart."""
    if num_classes == 1 and divergence == "jsd":
        raise ValueError(
            "num_classes must be at least 2 for divergence='jsd': the softmax of one logit is 1, "
            "whatever it is; for one logit (binary or multi-label) take divergence='binary_jsd', "
            "for regression 'mse'"
        )


def subset_masks(subsets: str, num_modalities: int) -> tuple[int, ...]:
    """One bitmask a subset: by size, then lexicographic."""
    choice("subsets", subsets, SUBSETS)
    largest = 1 if subsets == "single" else num_modalities - 1
    return tuple(
        sum(1 << m for m in subset)
        for size in range(1, largest + 1)
        for subset in itertools.combinations(range(num_modalities), size)
    )
