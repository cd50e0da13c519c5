"""What is timed, and the CPU's timer: contestants take turns, so that noise hits them alike."""

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from torch import Tensor, no_grad

MIN_CALLS = 3
MAX_CALLS_A_TURN = 500


@dataclass(frozen=True)
class Times:
    """Percentiles of one contestant's calls, in seconds."""

    p20: float
    p50: float
    p80: float
    calls: int


@dataclass(frozen=True)
class Step:
    """A call to time: `call` gets what `setup`, which is not timed, returned."""

    call: Callable[[Tensor | None], object]
    setup: Callable[[], Tensor | None] = lambda: None

    def run(self) -> object:
        """Both; what the call returned."""
        return self.call(self.setup())

    def seconds(self, clock: Callable[[], float] = perf_counter) -> float:
        """Time of one call by a clock of the CPU."""
        prepared = self.setup()
        start = clock()
        kept = self.call(prepared)
        elapsed = clock() - start
        del kept  # not earlier: freeing the result is no part of the call
        return elapsed


def step(forward: Callable[[], Tensor], leaves: list[Tensor], mode: str) -> Step:
    """A provider's call in one mode.

    "fwd" runs without gradients (evaluation), "full" is forward and backward (a training step),
    "bwd" times the backward alone, each on a graph of its own.
    """

    def forget_gradients() -> None:
        for leaf in leaves:
            leaf.grad = None

    def graph() -> Tensor:
        forget_gradients()
        return forward()

    def fwd(_: Tensor | None) -> object:
        with no_grad():
            return forward()

    def full(_: Tensor | None) -> object:
        loss = forward()
        loss.backward()
        return loss

    return {
        "fwd": Step(fwd, forget_gradients),
        "bwd": Step(lambda loss: loss.backward(), graph),
        "full": Step(full, forget_gradients),
    }[mode]


def race(
    contestants: Mapping[str, Step],
    seconds: float,
    rounds: int,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, Times]:
    """Times of each, from about `seconds` of calls in `rounds` turns; slow ones get fewer turns.

    `clock=time.thread_time` is the processor's time for this thread, which programs beside it do
    not lengthen; it misses what other threads of a call take.
    """
    estimate = {}
    for name, c in contestants.items():
        first = c.seconds(clock)
        # the first call loads and allocates; a slow one's is close enough
        estimate[name] = first if first > seconds else min(c.seconds(clock) for _ in range(3))
    samples: dict[str, list[float]] = {name: [] for name in contestants}
    gc.collect()
    gc.disable()
    try:
        for turn in range(rounds):
            for name, c in contestants.items():
                samples[name] += _take_turn(c, estimate[name], seconds, rounds, turn, clock)
    finally:
        gc.enable()
    return {name: percentiles(taken) for name, taken in samples.items()}


def _take_turn(
    c: Step, estimate: float, seconds: float, rounds: int, turn: int, clock: Callable[[], float]
) -> list[float]:
    turns = int(min(rounds, max(MIN_CALLS, seconds / max(estimate, 1e-9))))
    if turn * turns // rounds == (turn + 1) * turns // rounds:
        return []
    calls = int(min(MAX_CALLS_A_TURN, max(1, seconds / rounds / max(estimate, 1e-9))))
    if calls > 3:
        c.seconds(clock)  # the caches are full of the contestant before
    return [c.seconds(clock) for _ in range(calls)]


def percentiles(samples: list[float]) -> Times:
    """The times of a contestant's calls."""
    p20, p50, p80 = np.percentile(samples, [20, 50, 80])
    return Times(float(p20), float(p50), float(p80), len(samples))
