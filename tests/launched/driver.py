"""Triton's launchers up to the launch: on CPU tensors, for GPUs that are not there.

What a kernel is compiled for follows from each launch: the dtypes, which arguments are None, 1 or
multiples of 16, which pointers are aligned. A kernel that the interpreter runs can still be one
that Triton does not compile. Here nothing is started; launches are noted, and what they ask for is
compiled afterwards, each of it once. Results are zeros.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

if TYPE_CHECKING:
    from aot import Compiled

CACHE = Path(__file__).resolve().parents[2] / "build" / "launched"
TARGETS = (90, 80, 100)  # the first is the one that launches are noted for

Feature = tuple[str, str]  # of an argument or option: its name, and what was asked of it


class FakeDriver:
    """A GPU that is never used; its number is its generation's."""

    def __init__(self, target: int = TARGETS[0]):
        self.target = target

    def get_current_device(self) -> int:
        return self.target

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.target, 32)


def load() -> None:
    """Have the ops take CPU tensors for Triton's kernels, though no interpreter runs them.

    To be called before the kernels are imported, in a process of its own.
    """
    triton.knobs.runtime.interpret = False  # whatever the environment says after this
    os.environ["TRITON_INTERPRET"] = "1"
    os.environ.setdefault("TRITON_CACHE_DIR", str(CACHE))
    triton.runtime.driver.set_active(FakeDriver())


class Pointer:
    """In place of a tensor: as much of it as a kernel is compiled for."""

    def __init__(self, x: torch.Tensor):
        self.dtype = x.dtype
        self._address = 256 + x.data_ptr() % 256

    def data_ptr(self) -> int:
        return self._address


@dataclass(frozen=True)
class Asked:
    """A kernel as a launch asked for it."""

    fn: JITFunction
    arguments: dict[str, Any]  # of the launch, without tensors
    features: tuple[Feature, ...]
    source: str  # the first launch of them

    def compile(self, target: int) -> "Compiled":
        from aot import Compiled  # with the kernels: after `load`

        triton.runtime.driver.set_active(FakeDriver(target))
        try:
            kernel = self.fn.run(grid=None, warmup=True, **self.arguments)
        finally:
            triton.runtime.driver.set_active(FakeDriver())
        return Compiled(self.fn.__name__, target, kernel.asm, kernel.metadata.shared)


class Notes:
    """What launches ask for, each of it once, by the name of the kernel."""

    def __init__(self) -> None:
        self.launches = 0
        self._asked: dict[str, dict[tuple[Feature, ...], Asked]] = {}

    def of(self, kernel: str) -> list[Asked]:
        return list(self._asked.get(kernel, {}).values())

    def take(self, fn: JITFunction, arguments: dict[str, Any], source: str) -> None:
        self.launches += 1
        binder = fn.device_caches[TARGETS[0]][4]
        # as JITFunction.run does
        bound, specialisation, options = binder(**arguments, debug=False, instrumentation_mode="")
        features = [(name, str(what)) for name, what in zip(bound, specialisation, strict=True)]
        features += sorted((name, str(what)) for name, what in options.items())
        known = self._asked.setdefault(fn.__name__, {})
        if tuple(features) not in known:
            plain = {k: Pointer(v) if torch.is_tensor(v) else v for k, v in arguments.items()}
            known[tuple(features)] = Asked(fn, plain, tuple(features), source)


def _zeroed(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    return lambda *args, **options: make(*args, **options).zero_()


@contextlib.contextmanager
def noted(notes: Notes, source: str) -> Iterator[None]:
    """Launches inside are noted instead."""

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **arguments: Any) -> None:
        named = dict(zip(self.arg_names, args, strict=False))
        notes.take(self, named | arguments, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", run)
        # launchers index with what their kernels would have written
        patch.setattr(torch, "empty", _zeroed(torch.empty))
        patch.setattr(torch, "empty_like", _zeroed(torch.empty_like))
        yield


def _steering(features: Iterable[Feature]) -> list[Feature]:
    """What decides which code a kernel has: its constants, and which pointers are given."""
    found = [(name, what) for name, what in features if name.isupper()]
    pointers = [(name, what) for name, what in features if name.endswith("_ptr")]
    return found + [(name, "None" if "None" in what else "given") for name, what in pointers]


def covering(asked: Sequence[Asked], pairs: bool) -> list[Asked]:
    """Enough of them to have every feature that any has; and any two that steer, if they meet."""
    has: dict[tuple[Feature, ...], set] = {}
    for each in asked:
        has[each.features] = set(each.features)
        if pairs:
            has[each.features] |= set(combinations(_steering(each.features), 2))
    left = set().union(*has.values())
    by_features, chosen = {each.features: each for each in asked}, []
    while left:
        best = max(has, key=lambda features: len(has[features] & left))
        left -= has.pop(best)
        chosen.append(by_features[best])
    return chosen
