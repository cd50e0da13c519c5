"""What calling a module comes to: is it its class's forward, and on what?

A fusion is what calling it computes. Hooks, adapters, parametrizations, subclasses and wrappers
take part in a call, so a weight may be read past the call only where these functions say so.
"""

import sys
from collections.abc import Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all_modules
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

# What torch's own wrappers call the module that they wrap.
_WRAPPED = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
# Their forward pre-hooks compute a parameter's value before every call, and nothing else.
_REPARAMETRIZING = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")
_PLAIN_TENSORS = (Tensor, nn.Parameter)
_LINEAR_FORWARD = nn.Linear.forward


def wrapped(module: object) -> nn.Module | None:
    """What a wrapper of torch's holds (compiled, data-parallel, checkpointed), or None."""
    if not isinstance(module, nn.Module) or isinstance(module, torch.jit.ScriptModule):
        return None
    if not type(module).__module__.startswith("torch."):
        return None
    children = module._modules
    for name in _WRAPPED:
        inner = children.get(name)
        if inner is not None and len(children) == 1:
            return inner
    return None


def is_compiled(module: object) -> TypeGuard[nn.Module]:
    """Whether it is what torch.compile makes of a module: it computes what that computes."""
    return type(module).__name__ == "OptimizedModule" and wrapped(module) is not None


def is_data_parallel(module: object) -> TypeGuard[nn.Module]:
    """Whether a call makes the module's parameters ready to be averaged over processes."""
    return type(module).__name__ == "DistributedDataParallel" and wrapped(module) is not None


def unwrapped(module: object) -> Any:
    """The module inside of all of torch's wrappers."""
    inner = wrapped(module)
    while inner is not None:
        module, inner = inner, wrapped(inner)
    return module


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody takes part in its calls, also in those of all modules."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hooks_of_all_modules._has_any_global_hook()
    )


def calls_its_class(module: nn.Module) -> bool:
    """Whether a call is the forward that its class defines, and nothing beside it."""
    if has_hooks(module) or "forward" in module.__dict__:
        return False
    return type(module).__call__ is nn.Module.__call__


def plain_linear(module: object) -> TypeGuard[nn.Linear]:
    """Whether calling it is F.linear with its weight and bias as they are read, hooks refreshed."""
    if not isinstance(module, nn.Linear) or "forward" in module.__dict__:
        return False
    if nn.Linear.forward is not _LINEAR_FORWARD:  # somebody replaced it for all of them
        return False
    kind = type(module)
    if kind is not nn.Linear and not (
        # a parametrization makes a class of its own, whose properties are the parameters
        parametrize.is_parametrized(module) and kind.__bases__ == (nn.Linear,)
    ):
        return False
    if module._forward_hooks or module._backward_hooks or module._backward_pre_hooks:
        return False
    if hooks_of_all_modules._has_any_global_hook():
        return False
    return all(_reparametrizes(hook) for hook in module._forward_pre_hooks.values())


def _reparametrizes(hook: object) -> bool:
    """Whether a forward pre-hook is torch's weight norm, spectral norm or pruning."""
    if type(hook).__module__ in _REPARAMETRIZING:
        return True
    prune = sys.modules.get("torch.nn.utils.prune")
    return prune is not None and isinstance(hook, prune.BasePruningMethod)


def read_linear(module: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """Weight and bias that a call of a `plain_linear` would use now; read once a call, as there."""
    for hook in module._forward_pre_hooks.values():
        hook(module, ())
    return module.weight, module.bias


def plain_values(x: Tensor) -> bool:
    """A tensor of torch itself: a quantized or otherwise special one has products of its own."""
    return type(x) in _PLAIN_TENSORS or type(x).__module__.startswith("torch._subclasses")


def takes_joined(fusion: object) -> bool:
    """Whether a fusion is called with the concatenated latents, not with the list of them.

    Layers that can take nothing else: an nn.Linear of any class, or an nn.Sequential that starts
    with one, in torch's wrappers or not.
    """
    inner = unwrapped(fusion)
    while isinstance(inner, nn.Sequential) and len(inner) > 0:
        if type(inner).forward is not nn.Sequential.forward or "forward" in inner.__dict__:
            return False
        inner = unwrapped(inner[0])
    if isinstance(inner, torch.jit.ScriptModule):
        return getattr(inner, "original_name", "") == "Linear"
    return isinstance(inner, nn.Linear) or (
        type(inner).__name__ == "Linear" and type(inner).__module__.startswith("torch.ao.nn.")
    )


def initialize_lazy(fusion: object, latents: Sequence[Tensor]) -> None:
    """Give a lazy linear layer its parameters, as its first call would."""
    if not (isinstance(fusion, LazyModuleMixin) and isinstance(fusion, nn.Linear)):
        return
    if any(torch.nn.parameter.is_lazy(p) for p in fusion.parameters()):
        with torch.no_grad():
            fusion(torch.cat(tuple(latents), dim=-1))


def is_sharded(module: nn.Module) -> bool:
    """Whether the module's parameters are spread over processes, or gathered for its calls only."""
    names = {kind.__name__ for kind in type(module).__mro__}
    if names & {"FSDPModule", "FullyShardedDataParallel"}:
        return True
    return any(type(p).__name__ == "DTensor" for p in module._parameters.values())
