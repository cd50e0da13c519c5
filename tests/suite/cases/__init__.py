"""The one list of inputs of every op, and what each is put through where."""

import importlib
import pkgutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache

import torch

from suite import checks
from suite.backends import Backend
from suite.checks import Check
from suite.subjects import Subject

KERNELS = ("cpu", "triton", "cuda")
CPU, NATIVE = ("cpu",), ("cpu", "cuda")  # the interpreter is the slowest
CAPABILITIES = ("portable", "avx2", "avx512")
EVERYWHERE = (*KERNELS, *CAPABILITIES)


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
    thorough: bool = False  # on a GPU streams and graphs too, as for quick and for large ones
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

    def is_thorough(self, on: Backend) -> bool:
        return self.thorough or self.is_quick(on) or self.work > 1e5


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


def take(given: dict, names: Iterable[str]) -> dict:
    """Those of the arguments, which leave `given`."""
    return {name: given.pop(name) for name in names if name in given}


def fitting(dtype: torch.dtype | None, backends: tuple[str, ...] = KERNELS) -> tuple[str, ...]:
    """Those that have kernels of the dtype."""
    wide = dtype == torch.float64
    return tuple(name for name in backends if not (wide and name in ("triton", "cuda")))


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
