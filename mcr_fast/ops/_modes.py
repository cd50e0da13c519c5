"""Whether operations compute now, or are recorded or transformed to be computed in another way."""

from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import forward_ad

# Looked up once: every check of every argument asks them.
_transforms_active = torch._C._are_functorch_transforms_active
_is_tracing = torch._C._is_tracing
_dispatch_modes = torch._C._len_torch_dispatch_stack
_is_batched = torch._C._functorch.is_legacy_batchedtensor
_INFRASTRUCTURE = tuple(torch._C._TorchDispatchModeKey.__members__.values())
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def transformed() -> bool:
    """Whether a transform of torch.func is under way."""
    return bool(_transforms_active())


def recorded() -> bool:
    """Whether a compiler, a tracer, torch.func or fake tensors see the operations."""
    if torch.compiler.is_compiling() or _transforms_active() or _is_tracing():
        return True
    if _dispatch_modes() == 0:  # counts the modes below too
        return False
    return any(torch._C._get_dispatch_mode(key) is not None for key in _INFRASTRUCTURE)


def holds_values(x: Tensor) -> bool:
    """Whether the tensor is made of numbers: not on meta, not fake, not computed by a subclass."""
    if x.is_meta:
        return False
    return type(x) in _PLAIN_TYPES or not torch._C._dispatch_keys(x).has(
        torch._C.DispatchKey.Python
    )


def autocast_enabled(device: torch.device) -> bool:
    """Whether torch picks the dtypes of products on this device."""
    if not torch._C._is_any_autocast_enabled():
        return False
    return device.type != "meta" and torch.is_autocast_enabled(device.type)


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether an op has to take the gradient with its value.

    A tensor that vmap wraps does not say whether a transform outside of it differentiates, nor an
    example that is traced or exported what the program will be called with.
    """
    if not torch.compiler.is_compiling() and _is_tracing():
        return True
    if not torch.is_grad_enabled():
        return False
    if exporting():
        return True
    return any(x is not None and x.requires_grad for x in tensors) or transformed()


def has_tangent(*tensors: Tensor) -> bool:
    """Whether forward-mode differentiation runs through one of the tensors."""
    if forward_ad._current_level < 0:
        return False
    return any(forward_ad.unpack_dual(x).tangent is not None for x in tensors)


def refuse_forward_mode(op: str, *_: Any) -> NoReturn:
    """What an op does with a tangent, which would be lost unseen."""
    raise NotImplementedError(
        f"{op} has no forward mode derivative (jvp, jacfwd, hessian): its kernels are compiled; "
        'use backend="reference" for it'
    )


def refuse_batched(
    op: str,
    *grads: Tensor | None,
    way_out: str = 'use torch.func.jacrev, or backend="reference"',
) -> None:
    """Raise where torch.autograd batches gradients by its older vmap, which takes no lists."""
    for g in grads:  # in microseconds that a generator would double
        if g is not None and _is_batched(g):
            raise NotImplementedError(
                f"{op} takes no batched gradients of torch.autograd (is_grads_batched=True, "
                f"jacobian(vectorize=True)); {way_out}"
            )


def refuse_transforms(loss: str, way_out: str) -> None:
    """Raise under a transform of torch.func, for what takes a gradient inside of its forward."""
    if transformed():
        raise NotImplementedError(
            f"{loss} differentiates inside its forward, which the transforms of torch.func do not "
            f"let it do; {way_out}"
        )


def exporting() -> bool:
    """torch.compiler.is_exporting(), which torch 2.10's compiled code takes for True everywhere."""
    return torch.compiler._is_exporting_flag


def refuse_programs(loss: str) -> None:
    """Raise where a program is made of operations, for what takes a gradient inside of them."""
    if exporting() or (not torch.compiler.is_compiling() and _is_tracing()):
        raise NotImplementedError(
            f"{loss} runs this fusion on its own and differentiates inside its forward, which "
            "torch.export and torch.jit.trace do not record; export the model without the loss, "
            "set mipd_weight=0, or take a linear fusion (nn.Linear, AdditiveFusion without head)"
        )
