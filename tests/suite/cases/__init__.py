"""The one list of inputs of every op, and what each is put through where."""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache

from suite import checks
from suite.backends import Backend
from suite.checks import Check
from suite.subjects import Subject

KERNELS = ("cpu", "triton", "cuda")
CPU, NATIVE = ("cpu",), ("cpu", "cuda")  # the interpreter is the slowest
EVERYWHERE = (*KERNELS, "portable", "avx2", "avx512")  # and every instruction set


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
    emulator: dict = field(default_factory=dict)  # variables that make it take a larger size's path
    here: tuple[str, ...] = ()  # backends on which the limit does not count

    def is_for(self, on: Backend) -> bool:
        """Whether the backend takes it, and in how long."""
        if self.emulator and on.process != "emulated":
            return False
        return on.name in self.backends and (on.name in self.here or self.work <= on.limit)

    def is_quick(self, on: Backend) -> bool:
        return self.quick if isinstance(self.quick, bool) else on.name in self.quick


@cache
def every() -> tuple[Case, ...]:
    """All cases of all ops: the modules of this folder."""
    modules = sorted(module.name for module in pkgutil.iter_modules(__path__))
    found = [importlib.import_module(f"{__name__}.{name}").cases() for name in modules]
    return tuple(case for cases in found for case in cases)
