"""Activation checkpointing around the loss: the forward that runs again in the backward.

Checkpointing restores torch's own random state before it runs a function again, not that of a
generator that somebody passed, and no counter of steps. So the generator's state and a schedule's
factor are noted with the checkpoint that is being made, and the second run takes them from there.
"""

import inspect
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class _Notes(Generic[T]):
    """What was noted, call by call, in the function of one checkpoint."""

    def __init__(self) -> None:
        self._noted: weakref.WeakKeyDictionary[Any, list[T]] = weakref.WeakKeyDictionary()
        # how many of them a recomputation has taken, by the backward that it belongs to
        self._taken: weakref.WeakKeyDictionary[Any, dict[int, int]] = weakref.WeakKeyDictionary()

    def add(self, frame: Any, value: T) -> None:
        """In the first run."""
        self._noted.setdefault(frame, []).append(value)

    def take(self, frame: Any) -> T | None:
        """In a recomputation: what the same call of the first run noted, None if nothing."""
        noted = self._noted.get(frame, []) if frame is not None else []
        taken = self._taken.setdefault(frame, {}) if frame is not None else {}
        task = torch._C._current_graph_task_id()
        index = taken.get(task, 0)
        if index >= len(noted):
            return None
        taken[task] = index + 1
        return noted[index]


_states: _Notes[Tensor] = _Notes()  # in which generators were found
_factors: _Notes[float] = _Notes()  # of schedules


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
            _states.add(frame, generator.get_state())
        return generator
    state = _states.take(frame)
    if state is None:
        raise RuntimeError(
            "donors are drawn again in the backward (activation checkpointing), where generator= "
            "would draw others: pass permutations=sample_permutations(...), drawn outside of the "
            "checkpointed function, or checkpoint with use_reentrant=False"
        )
    again = torch.Generator(generator.device)
    again.set_state(state)
    return again


def factor_of_step(count: Callable[[], float], last: Callable[[], float]) -> float:
    """What a step counts as: in a recomputation that of the first run, or the last one.

    The first run of a reentrant checkpoint sees no gradients, so that the second one counts. The
    last one is for a checkpoint inside of a recomputed one, which is made anew.
    """
    frame, recomputing = _checkpoint()
    if recomputing and frame is not None:
        factor = _factors.take(frame)
        return last() if factor is None else factor
    factor = count()
    if frame is not None:
        _factors.add(frame, factor)
    return factor


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
