"""The state that a fusion's modules are in while it runs: for the caller, or for the regularizer.

What the divergence compares must differ by the permutation alone. So while the regularizer runs a
fusion, what a module does in training only is off: dropout draws nothing, normalisation reads its
statistics and does not update them. And nobody's backward hook hears of these runs: the gradient
passes it once, in the caller's backward.
"""

import functools
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as all_modules
from torch.nn.utils import parametrize

from mcr_fast._wrapping import is_fabric, reparametrizing_hooks, wrapped
from mcr_fast.mipd.reach import Reached, to_evaluate


@contextmanager
def runs_apart(reached: Reached, fusion_mode: str) -> Iterator[bool]:
    """The mode in which the regularizer runs a fusion; gives whether that is another one."""
    if fusion_mode == "own":
        yield False
        return
    for module in reached.modules:
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise ValueError(
                f"fusion has a {type(module).__name__} without running statistics, which mixes the "
                "rows that the regularizer permutes; give it track_running_stats=True, or take "
                "fusion_mode='own'"
            )
    changed = to_evaluate(reached)
    with unremembered(reached.modules), evaluating(changed):
        yield bool(changed)


@contextmanager
def without_trace(device: torch.device, modules: Sequence[nn.Module]) -> Iterator[None]:
    """A run to look at: it leaves no draw and no statistic, and nothing in it is compiled."""
    devices = [] if device.type == "cpu" else [device]
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices, device_type=device.type))
        stack.enter_context(unremembered(modules))
        stack.enter_context(evaluating([m for m in modules if m.training]))
        if "torch._dynamo" in sys.modules:  # compiled code calls no hook that it has not seen
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def evaluating(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Modules that are in training mode, in evaluation mode."""
    try:
        for module in modules:
            module.training = False
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
    kept: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for module in modules:
        writes = _may_write(module)
        for held in (vars(module), module._buffers) if writes else (vars(module),):
            before = dict(held)
            kept.append((held, before))
            for name, x in before.items() if writes else ():
                if isinstance(x, Tensor) and _may_be_statistic(x):
                    held[name] = copies.setdefault(id(x), x.clone())
    try:
        yield
    finally:
        for held, before in kept:
            both = [*held.items(), *before.items()]
            tensors = {name for name, x in both if isinstance(x, Tensor)}
            for name in tensors - before.keys():
                del held[name]
            held.update({name: before[name] for name in tensors & before.keys()})


def _may_write(module: nn.Module) -> bool:
    """Torch's own layers write to their buffers in training only."""
    own = type(module).__module__.startswith("torch.nn.")
    return not own and not isinstance(module, torch.jit.ScriptModule)


def _may_be_statistic(x: Tensor) -> bool:
    return not x.requires_grad and x.numel() <= _LARGEST_STATISTIC


_PER_PROCESS = ("DistributedDataParallel", "DataParallel")


@contextmanager
def without_preparations(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Runs that do not prepare for the backward that a wrapper expects of each call.

    Data-parallel ones collect gradients in it; Fabric's raise if it is not Fabric's own.
    """
    kept: list[tuple[dict[str, Any], str, Any]] = []
    for module in modules:
        inner = wrapped(module) if type(module).__name__ in _PER_PROCESS else None
        if inner is not None:
            kept.append((vars(module), "forward", inner))
        elif is_fabric(module):
            kept.append((vars(module), "_register_backward_hook", lambda x: x))
    kept = [(held, name, new) for held, name, new in kept if name not in held]
    for held, name, new in kept:
        held[name] = new
    try:
        yield
    finally:
        for held, name, _ in kept:
            del held[name]


@contextmanager
def weights_computed_once(modules: Sequence[nn.Module], width: int) -> Iterator[None]:
    """Layers of this many inputs have one weight in all runs, also those that compute it.

    So the gradient of its columns is told apart by modality, and then goes back through what
    computed them, as that of a weight which is a parameter.
    """
    with ExitStack() as stack:
        for module in modules:
            if isinstance(module, nn.Linear) and module.in_features == width:
                hooks = reparametrizing_hooks(module)
                if hooks or parametrize.is_parametrized(module, "weight"):
                    stack.enter_context(_computed_once(module, hooks))
        yield


@contextmanager
def _computed_once(layer: nn.Linear, hooks: set[int]) -> Iterator[None]:
    """A layer without what computes its tensors, but with them as they are."""
    for key in hooks:
        layer._forward_pre_hooks[key](layer, ())
    names = [*getattr(layer, "parametrizations", {})]
    kind, pre_hooks, before = type(layer), layer._forward_pre_hooks, dict(vars(layer))
    others = OrderedDict((key, hook) for key, hook in pre_hooks.items() if key not in hooks)
    made = {name: getattr(layer, name) for name in names}
    if names:  # its properties are what computes them
        object.__setattr__(layer, "__class__", nn.Linear)
    vars(layer).update(made, _forward_pre_hooks=others)
    try:
        yield
    finally:
        object.__setattr__(layer, "__class__", kind)
        for name in names:
            del vars(layer)[name]
        vars(layer).update(before)


_Hooks = OrderedDict[int, Any]
_HOOKS = ("_backward_hooks", "_backward_pre_hooks")
_GLOBAL_HOOKS = (all_modules._global_backward_hooks, all_modules._global_backward_pre_hooks)


@contextmanager
def noting(called: dict[int, nn.Module]) -> Iterator[None]:
    """Notes the modules that are called: what a callable runs and nothing shows that it holds."""

    def note(module: nn.Module, args: Any) -> None:
        called[id(module)] = module

    handle = all_modules.register_module_forward_pre_hook(note)
    try:
        yield
    finally:
        handle.remove()


def without_backward_hooks(modules: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """Runs whose gradients no backward hook of a module hears of, nor one of all modules."""
    return _replaced_hooks(modules, lambda hooks: OrderedDict())


def looking_hooks_only(modules: Sequence[nn.Module]) -> AbstractContextManager[None]:
    """The caller's clean run: a backward hook that changes a gradient raises.

    The gradient of the perturbed rows does not pass the hooks of the modules inside of a fusion.
    That is right for a hook that looks, and would be a wrong number for one that changes it.
    """
    return _replaced_hooks(
        modules, lambda hooks: OrderedDict((key, _guard(hook)) for key, hook in hooks.items())
    )


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
