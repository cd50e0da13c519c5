"""The modules that a callable may run, and what of them depends on the mode they are in."""

import functools
from collections.abc import Hashable
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import NamedTuple, cast

import torch
from torch import nn

from mcr_fast._checkpointing import closure_of

_MOST_ITEMS = 256  # of a container that is looked through: the layers of a model, not a data set


class Reached(NamedTuple):
    """What a callable may run."""

    modules: list[nn.Module]
    function_reads_mode: bool  # a function among it looks at `training`
    compiled: bool  # something among it went through torch.compile


def reach(fusion: object) -> Reached:
    """The modules inside of a callable: its own, those of its closure, arguments and globals."""
    found: dict[int, nn.Module] = {}
    reads_mode = compiled = False
    seen: set[int] = set()
    pending: list[object] = [fusion]
    while pending:
        x = pending.pop()
        if id(x) in seen:
            continue
        seen.add(id(x))
        if isinstance(x, nn.Module):
            found.update((id(module), module) for module in x.modules())
        else:
            reads_mode = reads_mode or _function_reads_mode(x)
            compiled = compiled or hasattr(x, "_torchdynamo_orig_callable")
            pending.extend(_held_by(x))
    modules = list(found.values())
    return Reached(modules, reads_mode, compiled or any(map(_is_compiled, modules)))


def _is_compiled(module: nn.Module) -> bool:
    return module._compiled_call_impl is not None or type(module).__name__ == "OptimizedModule"


def _held_by(x: object) -> list[object]:
    """What a callable or a container holds that may be, or lead to, a module."""
    if isinstance(x, (list, tuple, set, frozenset)):
        return list(x) if len(x) <= _MOST_ITEMS else []
    if isinstance(x, dict):
        return list(x.values()) if len(x) <= _MOST_ITEMS else []
    if isinstance(x, functools.partial):
        return [x.func, *x.args, *x.keywords.values()]
    if isinstance(x, MethodType):
        names = _names(x.__func__.__code__) if isinstance(x.__func__, FunctionType) else set()
        return [x.__func__, x.__self__, *_attributes(x.__self__, names)]
    if isinstance(x, FunctionType):
        return _held_by_function(x)
    if isinstance(x, (type, ModuleType)) or not callable(x):
        return []
    call = type(x).__call__
    calls = [MethodType(call, x)] if isinstance(call, FunctionType) else []
    return [*calls, *getattr(x, "__dict__", {}).values()]


def _held_by_function(function: FunctionType) -> list[object]:
    if (function.__module__ or "").startswith("torch."):
        return list(vars(function).values())  # a wrapper of torch.compile names what it wraps
    names = _names(function.__code__)
    held = closure_of(function)
    held += [function.__globals__[name] for name in names if name in function.__globals__]
    held += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    held += vars(function).values()
    return held + [part for x in held for part in _attributes(x, names)]


def _names(code: CodeType) -> set[str]:
    """What a function's code names: globals, attributes, words; its inner functions' included."""
    inner = [_names(c) for c in code.co_consts if isinstance(c, CodeType)]
    words = (c for c in code.co_consts if isinstance(c, str) and c.isidentifier())
    return set(code.co_names).union(words, *inner)


def _attributes(x: object, names: set[str], depth: int = 3) -> list[object]:
    """Of a plain object, such as a trainer, the attributes and methods that the code names."""
    if isinstance(x, (type, ModuleType, nn.Module, FunctionType, torch.Tensor)) or depth == 0:
        return []
    held = getattr(x, "__dict__", None)
    if not isinstance(held, dict):
        return []
    found = [held[name] for name in names if name in held]
    for name in names:
        member = getattr(type(x), name, None)
        function = member.fget if isinstance(member, property) else member
        if isinstance(function, FunctionType):
            found.append(MethodType(function, x))
    return found + [part for y in found for part in _attributes(y, names, depth - 1)]


@functools.lru_cache(maxsize=4096)
def _class_reads_mode(kind: Hashable) -> bool:
    """Whether code of the class, torch's base class aside, looks at `training`."""
    assert isinstance(kind, type)
    for base in kind.__mro__:
        if base in (nn.Module, object):
            continue
        for member in vars(base).values():
            function = getattr(member, "fget", None) or getattr(member, "__func__", member)
            if _function_reads_mode(function):
                return True
    return False


def _depends_on_mode(module: nn.Module) -> bool:
    """Whether a module may compute something else in training than in evaluation."""
    kind = cast(Hashable, type(module))  # mypy takes a module's class for unhashable
    return (
        isinstance(module, torch.jit.ScriptModule)
        or bool(module._forward_hooks or module._forward_pre_hooks)
        or "forward" in module.__dict__
        or _class_reads_mode(kind)
    )


def _function_reads_mode(x: object, depth: int = 3) -> bool:
    """Whether a function looks at `training`: by itself, or a function it wraps or names does."""
    if not isinstance(x, FunctionType) or depth == 0:
        return False
    names = _names(x.__code__)
    if "training" in names:
        return True
    if (x.__module__ or "").startswith("torch."):
        return False
    others = [*closure_of(x), *(x.__globals__[n] for n in names if n in x.__globals__)]
    others.append(getattr(x, "__wrapped__", None))
    return any(_function_reads_mode(other, depth - 1) for other in others)


def to_evaluate(reached: Reached) -> list[nn.Module]:
    """Those in training mode, if anything computes something else in evaluation."""
    training = [m for m in reached.modules if getattr(m, "training", False)]
    if reached.function_reads_mode or any(_depends_on_mode(m) for m in training):
        return training
    return []
