"""The modules that a fusion runs, and the state they are in while the regularizer runs them.

What the divergence compares must differ by the permutation alone. So while the regularizer runs a
fusion, what a module does in training only is off: dropout draws nothing, normalisation reads its
statistics and does not update them. And nobody's backward hook hears of these runs: the gradient
passes it once, in the caller's backward.
"""

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as all_modules

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


def closure_of(function: object) -> list[Any]:
    """What a function closes over, as far as it has been given a value."""
    held = []
    for cell in getattr(function, "__closure__", None) or ():
        with suppress(ValueError):
            held.append(cell.cell_contents)
    return held


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


def depends_on_mode(module: nn.Module) -> bool:
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
    if reached.function_reads_mode or any(depends_on_mode(m) for m in training):
        return training
    return []


@contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """These modules, of `to_evaluate`, in evaluation mode."""
    for module in modules:
        module.training = False
    try:
        yield
    finally:
        for module in modules:
            module.training = True


# Statistics are small; a table of positions or a cache that is larger is not written to in a run.
_LARGEST_STATISTIC = 1 << 16


@contextmanager
def unremembered(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Runs that leave modules as they were: buffers they write to, tensors they keep of a call.

    A normalisation that counts in every mode counts the caller's call alone; an auxiliary loss or
    an attention map kept as an attribute, or a weight that a hook sets, stays that of this call.
    """
    copies: dict[int, Tensor] = {}
    buffers, kept = [], []
    for module in modules:
        kept.append((module, _tensors_of(module)))
        if _may_write(module):
            buffers.append((module, dict(module._buffers)))
            for held in (module._buffers, vars(module)):
                for name, x in list(held.items()):
                    if isinstance(x, Tensor) and _may_be_statistic(x):
                        held[name] = copies.setdefault(id(x), x.clone())
    try:
        yield
    finally:
        for module, before in buffers:
            module._buffers.update(before)
        for module, tensors in kept:
            state = vars(module)
            for name in _tensors_of(module).keys() - tensors.keys():
                del state[name]
            state.update(tensors)


def _tensors_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: x for name, x in vars(module).items() if isinstance(x, Tensor)}


def _may_write(module: nn.Module) -> bool:
    """Torch's own layers write to their buffers in training only."""
    own = type(module).__module__.startswith("torch.nn.")
    return not own and not isinstance(module, torch.jit.ScriptModule)


def _may_be_statistic(x: Tensor) -> bool:
    return not x.requires_grad and x.numel() <= _LARGEST_STATISTIC


def mixes_rows(modules: Sequence[nn.Module]) -> str | None:
    """The class of a batch norm without running statistics: it mixes rows in evaluation too."""
    for module in modules:
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return type(module).__name__
    return None


_Hooks = OrderedDict[int, Any]
_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = (all_modules._global_backward_hooks, all_modules._global_backward_pre_hooks)


@contextmanager
def noting(called: dict[int, nn.Module], wanted: bool) -> Iterator[None]:
    """Notes the modules that are called: what a callable runs and nothing shows that it holds."""
    if not wanted:
        yield
        return

    def note(module: nn.Module, args: Any) -> None:
        called[id(module)] = module

    handle = all_modules.register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def without_backward_hooks(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Runs whose gradients no backward hook of a module hears of, nor one of all modules."""
    with _replaced_hooks(modules, lambda hooks: OrderedDict()):
        yield


@contextmanager
def looking_hooks_only(modules: Sequence[nn.Module]) -> Iterator[None]:
    """The caller's clean run: a backward hook that changes a gradient raises.

    The gradient of the perturbed rows does not pass the hooks of the modules inside of a fusion.
    That is right for a hook that looks, and would be a wrong number for one that changes it.
    """
    with _replaced_hooks(
        modules, lambda hooks: OrderedDict((key, _guard(hook)) for key, hook in hooks.items())
    ):
        yield


def _guard(hook: Any) -> Any:
    @functools.wraps(hook)
    def look(module: nn.Module, *args: Any) -> None:
        if hook(module, *args) is not None:
            raise RuntimeError(
                f"a backward hook of {type(module).__name__} in the fusion changes gradients, "
                "which MCRLoss cannot do for the perturbed rows; change them by hooks on "
                "parameters or latents (Tensor.register_hook), or inside of the module's forward"
            )

    return look


@contextmanager
def _replaced_hooks(
    modules: Sequence[nn.Module], replace: Callable[[_Hooks], _Hooks]
) -> Iterator[None]:
    """Other hooks in place of the modules' own and of those of all modules."""
    kept = []
    for module in modules:
        for name in _HOOKS:
            hooks = getattr(module, name)
            if hooks:
                kept.append((module, name, hooks))
                object.__setattr__(module, name, replace(hooks))
    # torch holds on to these two, so what is in them changes
    of_all = [(hooks, dict(hooks)) for hooks in _GLOBAL_HOOKS if hooks]
    for hooks, before in of_all:
        others = replace(OrderedDict(before))
        hooks.clear()
        hooks.update(others)
    try:
        yield
    finally:
        for module, name, hooks in kept:
            object.__setattr__(module, name, hooks)
        for hooks, before in of_all:
            hooks.clear()
            hooks.update(before)
