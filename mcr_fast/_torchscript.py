"""torch.jit.script cannot compile the losses, and says so about our source: say it in words."""

from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def refuse_script(name: str) -> NoReturn:
    """What `__prepare_scriptable__`, which torch.jit.script calls first, does."""
    raise RuntimeError(
        f"{name} cannot be compiled by torch.jit.script; leave it out of the scripted module and "
        "call it from Python, or use torch.compile, torch.export or torch.jit.trace"
    )


def unscriptable(function: Function) -> Function:
    """Have torch.jit.script refuse the function by its name, called or compiled."""
    function.__prepare_scriptable__ = lambda: refuse_script(  # type: ignore[attr-defined]
        f"mcr_fast.functional.{function.__name__}"
    )
    return function
