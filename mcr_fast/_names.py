"""The names that options take, in one place: every layer knows these and refuses others."""

from typing import Literal, get_args

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
# What they read are logits, the largest of which are masks; the others take numbers as they are.
OF_LOGITS: tuple[str, ...] = ("jsd", "binary_jsd")
# Of one distribution over the classes; the others are means over the classes.
OF_SOFTMAX: tuple[str, ...] = ("jsd",)
EXCLUDES: tuple[str, ...] = ("none", *get_args(Exclude))  # as the ops have them
BACKENDS: tuple[str, ...] = get_args(Backend)


def choice(name: str, value: object, known: tuple[str | None, ...]) -> None:
    """Raise ValueError for an option's value that is not a known one."""
    # An array compares by elements, and has no truth.
    if not (value is None or isinstance(value, str)) or value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")
