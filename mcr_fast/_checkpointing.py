"""Activation checkpointing around the loss: the forward that runs again in the backward.

Checkpointing restores torch's own random state before it runs a function again, not that of a
generator that somebody passed. So the state is noted with the checkpoint that is being made, and
the donors of the second run are drawn from it.
"""

import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

# The states in which generators were found, call by call, in the function of one checkpoint; and
# how many of them a recomputation has taken, by the backward that it belongs to.
_noted: "weakref.WeakKeyDictionary[Any, list[Tensor]]" = weakref.WeakKeyDictionary()
_taken: "weakref.WeakKeyDictionary[Any, dict[int, int]]" = weakref.WeakKeyDictionary()


def generator_of_step(generator: torch.Generator | None) -> torch.Generator | None:
    """The generator to draw from: in a recomputation a copy, in the state of the first run.

    Raises:
        RuntimeError: a recomputation whose first run is not known (reentrant checkpointing).
    """
    if generator is None or torch.compiler.is_compiling():
        return generator
    frame, recomputing = _checkpoint()
    if not recomputing:
        if frame is not None:
            _noted.setdefault(frame, []).append(generator.get_state())
        return generator
    states = _noted.get(frame, []) if frame is not None else []
    taken = _taken.setdefault(frame, {}) if frame is not None else {}
    task = torch._C._current_graph_task_id()
    index = taken.get(task, 0)
    if index >= len(states):
        raise RuntimeError(
            "donors are drawn again in the backward (activation checkpointing), where generator= "
            "would draw others: pass permutations=sample_permutations(...), drawn outside of the "
            "checkpointed function, or checkpoint with use_reentrant=False"
        )
    taken[task] = index + 1
    again = torch.Generator(generator.device)
    again.set_state(states[index])
    return again


def runs_again() -> bool:
    """Whether this is the second run of a checkpointed function whose first run saw gradients."""
    if torch._C._current_graph_task_id() == -1:
        return False
    frame, recomputing = _checkpoint()
    return recomputing and frame is not None


def _checkpoint() -> tuple[Any, bool]:
    """torch's record of the checkpoint around this call, if any, and whether this is its rerun."""
    in_backward = torch._C._current_graph_task_id() != -1
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
    pack = inspect.unwrap(hooks[0]) if hooks else None
    for held in closure_of(pack):
        held = held() if isinstance(held, weakref.ref) else held
        if type(held).__name__ == "_CheckpointFrame":
            return held, in_backward
    return None, in_backward


def closure_of(function: object) -> list[Any]:
    """What a function closes over, as far as it has been given a value."""
    held = []
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):
            held.append(cell.cell_contents)
    return held


@contextmanager
def without_recomputation() -> Iterator[None]:
    """Runs whose gradient is taken at once: a checkpoint around them has nothing to free."""
    if _checkpoint()[0] is None:
        yield
        return
    with torch.autograd.graph.saved_tensors_hooks(lambda x: x, lambda x: x):
        yield
