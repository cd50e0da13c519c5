"""What calling a module comes to: is it its class's forward, and on what?

A fusion is what calling it computes. Hooks, adapters, parametrizations, subclasses and wrappers
take part in a call, so a weight may be read past the call only where these functions say so.
"""

import functools
import sys
from collections.abc import Hashable, Iterable, Iterator, Sequence
from types import MethodType
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks_of_all_modules
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils import parametrize

# What torch's own wrappers call the module that they wrap.
_WRAPPED = ("_orig_mod", "module", "_checkpoint_wrapped_module", "_fsdp_wrapped_module")
# Their forward pre-hooks compute a parameter's value before every call, and nothing else.
_REPARAMETRIZING = ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm")
# What a module's call and its forward are, as methods that are bound to it.
_CALLS = ("forward", "__call__", "_call_impl", "_wrapped_call_impl")
_FABRIC = ("lightning.fabric.wrappers", "lightning_fabric.wrappers")
# Where accelerate keeps the forward that it puts autocast around.
_ACCELERATED = "_original_forward"
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


def is_fabric(module: object) -> TypeGuard[nn.Module]:
    """Whether it is a module as Lightning's Fabric sets it up: with a precision of its calls."""
    return type(module).__name__ == "_FabricModule" and type(module).__module__ in _FABRIC


def layers_of(module: object) -> Iterator[Any]:
    """A wrapped module from the outside in: itself, what it holds, and so on."""
    inner: object = module
    while inner is not None:
        module = inner
        yield module
        inner = module._modules["_forward_module"] if is_fabric(module) else wrapped(module)


def is_data_parallel(module: object) -> bool:
    """Whether a call makes the module's parameters ready to be averaged over processes."""
    return any(type(layer).__name__ == "DistributedDataParallel" for layer in layers_of(module))


def unwrapped(module: object) -> Any:
    """The module inside of all of torch's wrappers, and of Fabric's."""
    *_, inner = layers_of(module)
    return inner


def unbound(fusion: Any) -> Any:
    """The module of a bound method or an empty `functools.partial` that is a call of it."""
    if isinstance(fusion, functools.partial) and not (fusion.args or fusion.keywords):
        return unbound(fusion.func)
    if not isinstance(fusion, MethodType) or not isinstance(fusion.__self__, nn.Module):
        return fusion
    module, name = fusion.__self__, fusion.__func__.__name__
    kind = type(module)
    if name not in _CALLS or getattr(kind, name, None) is not fusion.__func__:
        return fusion
    # forward alone is the call where nobody else takes part
    called = name != "forward" or calls_its_class(module)
    return module if called and kind.__call__ is nn.Module.__call__ else fusion


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
    kind = base_of(type(module))
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


def reparametrizing_hooks(module: nn.Module) -> set[int]:
    """The keys of its forward pre-hooks that compute a parameter's value, and nothing else."""
    return {key for key, hook in module._forward_pre_hooks.items() if _reparametrizes(hook)}


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
        replaced = "forward" in vars(inner) and _ACCELERATED not in vars(inner)
        if type(inner).forward is not nn.Sequential.forward or replaced:
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


def is_unit(module: nn.Module) -> bool:
    """Whether it is a unit of fully_shard, whose parameters are gathered for a call."""
    return _is_unit(cast(Hashable, type(module)))  # mypy takes a module's class for unhashable


@functools.lru_cache(maxsize=1024)
def _is_unit(kind: Hashable) -> bool:
    assert isinstance(kind, type)
    return any(base.__name__ == "FSDPModule" for base in kind.__mro__)


def with_idle(loss: Tensor, idle: Iterable[Tensor]) -> Tensor:
    """The same loss, with a gradient of zeros for tensors that it would else not depend on.

    What averages gradients over processes waits for that of every parameter.
    """
    if not torch.is_grad_enabled():
        return loss
    for x in idle:
        if x.requires_grad:
            # this process's part, for a sum of a DTensor would make the loss one
            part = cast(Any, x).to_local() if type(x).__name__ == "DTensor" else x
            # none of its elements, so that no value can become NaN
            loss = loss + part.flatten()[:0].sum().to(loss.dtype)
    return loss


def base_of(kind: type) -> type:
    """The class of a module before fully_shard or replicate gave it one that adds to it."""
    bases = kind.__bases__
    if len(bases) == 2 and bases[0].__module__.startswith("torch.distributed."):
        return bases[1]
    return kind


def is_sharded(module: nn.Module) -> bool:
    """Whether the module's parameters are spread over processes."""
    if any(kind.__name__ == "FullyShardedDataParallel" for kind in type(module).__mro__):
        return True
    return any(type(p).__name__ == "DTensor" for p in module._parameters.values())
