"""The one list of inputs of every op, and what each is put through where."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations, product

import torch

from mcr_fast.ops.registry import OPS
from suite import checks
from suite.backends import Backend
from suite.checks import Check
from suite.subjects import Subject

KERNELS = ("cpu", "triton", "cuda")
CPU, NATIVE = ("cpu",), ("cpu", "cuda")  # the interpreter is the slowest
CAPABILITIES = ("portable", "avx2", "avx512")
EVERYWHERE = (*KERNELS, *CAPABILITIES, "reference")


@dataclass(frozen=True)
class Case:
    """One input, by a name that is unique in its op."""

    op: str
    name: str
    make: Callable[[], Subject]  # on the CPU
    checks: tuple[Check, ...] = (checks.bound,)
    work: float = 0  # the elements it computes: a backend has a limit
    backends: tuple[str, ...] = KERNELS
    quick: bool | tuple[str, ...] = False  # in `make test`: nowhere, everywhere, on these backends
    emulator: dict = field(default_factory=dict)  # its knobs: a larger size's path
    here: tuple[str, ...] = ()  # backends on which the limit does not count
    thorough: bool = False  # on a GPU streams and graphs too
    interpreted: bool = True  # False: one of many, of which the interpreter takes some

    def is_for(self, on: Backend) -> bool:
        """Whether the backend takes it, and in how long."""
        if self.emulator and on.process != "emulated":
            return False
        if on.process == "interpreted" and not self.interpreted:
            return False
        return on.name in self.backends and (on.name in self.here or self.work <= on.limit)

    def is_quick(self, on: Backend) -> bool:
        return self.quick if isinstance(self.quick, bool) else on.name in self.quick


def named(**features: object) -> str:
    """A name that lists what is particular: True by its key, others by their value."""
    words = []
    for key, value in features.items():
        if value is True:
            words.append(key)
        elif value is not None and value is not False:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            text = text.removeprefix("torch.").replace(" ", "_").replace(",", "")
            words.append(text if isinstance(value, str | torch.dtype) else key + text)
    return "_".join(words)


def pairwise(*features: Iterable) -> Iterator[tuple[bool, tuple]]:
    """Combinations in which any two values of different features meet, far fewer than all.

    With each comes whether it brings a value that none before it had: these are enough for a
    backend that is slow.
    """
    numbered = [list(enumerate(values)) for values in features]
    pairs = {c: set(combinations(enumerate(n for n, _ in c), 2)) for c in product(*numbered)}
    left, seen = set().union(*pairs.values()), set()
    while left:
        best = max(pairs, key=lambda c: len(pairs[c] & left))
        left -= pairs.pop(best)
        values = {(at, n) for at, (n, _) in enumerate(best)}
        yield not values <= seen, tuple(value for _, value in best)
        seen |= values


def take(given: dict, names: Iterable[str]) -> dict:
    """Those of the arguments, which leave `given`."""
    return {name: given.pop(name) for name in names if name in given}


def fitting(
    op: str, dtype: torch.dtype | None, backends: tuple[str, ...] = KERNELS
) -> tuple[str, ...]:
    """Those that have kernels of the op for the dtype."""
    of_gpus = () if dtype == torch.float64 else OPS[op].backends
    return tuple(name for name in backends if name not in ("triton", "cuda") or name in of_gpus)


@cache
def every() -> tuple[Case, ...]:
    """All cases of all ops: the modules of this folder."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [importlib.import_module(f"{__name__}.{name}").cases() for name in modules]
    by_name = {}
    for case in (case for cases in found for case in cases):
        key = case.op, case.name
        assert by_name.setdefault(key, case) is case, f"two cases of {key}"
    return tuple(by_name.values())
