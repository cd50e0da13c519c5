"""Checks of options: Python values that have a known set or a range."""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

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
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def positive(name: str, value: object) -> float:
    """A finite Python number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be finite and above 0, got {value!r}")
    return float(value)


def finite(name: str, value: object) -> float:
    """A finite Python number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def whole(name: str, value: object, least: int = 1) -> None:
    """A Python int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def latent_dims(value: Any) -> tuple[int, ...]:
    """At least two widths."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"latent_dims must be a list of widths, one a modality, got {value!r}")
    if len(value) < 2:
        raise ValueError(f"latent_dims must hold at least 2 modalities, got {list(value)}")
    for width in value:
        whole("latent_dims", width)
    return tuple(value)


def divergence_options(
    strategy: object, clean_path: object, divergence: object, exclude: object, backend: object
) -> None:
    """The options of the regularizer."""
    choice("strategy", strategy, STRATEGIES)
    choice("clean_path", clean_path, CLEAN_PATHS)
    choice("divergence", divergence, DIVERGENCES)
    choice("exclude", exclude, EXCLUDES)
    choice("backend", backend, BACKENDS)


def subset_masks(subsets: str, num_modalities: int) -> tuple[int, ...]:
    """One bitmask a subset: by size, then lexicographic."""
    choice("subsets", subsets, SUBSETS)
    largest = 1 if subsets == "single" else num_modalities - 1
    return tuple(
        sum(1 << m for m in subset)
        for size in range(1, largest + 1)
        for subset in itertools.combinations(range(num_modalities), size)
    )
