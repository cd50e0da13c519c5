"""Hooks: of a loss that is watched, and of the latents whose gradients are measured."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from mcr_fast.monitor._gradients import Contrasted
from mcr_fast.monitor._means import Means
from mcr_fast.monitor._rows import NO_GRADIENT
from mcr_fast.monitor._seen import contrasted_latents, facts_of_call, trains


class Watch:
    """The hooks of `MCRMonitor.watch`; copies of the module, also in other processes, have none."""

    def __init__(self, monitor: Any, module: nn.Module, unimodal_logits: Any) -> None:
        self._monitor, self._unimodal_logits = monitor, unimodal_logits
        loss = getattr(module, "loss", module)
        self._module, self._loss = weakref.ref(module), weakref.ref(loss)
        before = loss.register_forward_pre_hook(_Hook(self._before), with_kwargs=True)
        after = module.register_forward_hook(_Hook(self._after), with_kwargs=True)
        self._handles = (before, after)

    def remove(self) -> None:
        """Watch no more."""
        for handle in self._handles:
            handle.remove()

    def _before(self, loss: nn.Module, args: Any, kwargs: Any) -> Any:
        """Have the gradient of L_Con apart where it is an op of its own, over all ranks."""
        monitor, module = self._monitor, self._module()
        monitor._contrasted = None
        if loss is not self._loss() or module is None or not module.training:
            return None
        looks = monitor.gradients and monitor.step % monitor.stride == 0
        if not looks or torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return None
        latents = contrasted_latents(loss, args, kwargs)
        if latents is None or not trains(latents[0]):
            return None
        monitor._contrasted = Contrasted()
        return args, {**kwargs, "embeddings": monitor._contrasted.of(latents)}

    def _after(self, module: nn.Module, args: Any, kwargs: Any, out: Any) -> None:
        if not (module.training and torch.is_grad_enabled() and trains(out.divergences)):
            return
        if self._module() is not module:
            return
        given = facts_of_call(module, args, kwargs, out)
        if self._unimodal_logits is not None and given["labels"] is not None:
            given["unimodal_logits"] = self._unimodal_logits()
        self._monitor.update(out, **given)


class _Hook:
    """A hook of a module, of which copies do nothing."""

    def __init__(self, call: Callable[..., Any] | None = None) -> None:
        self._call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, ()

    def __call__(self, *args: Any) -> Any:
        return None if self._call is None else self._call(*args)


class Norms:
    """Gradient hooks of one step's latents, which leave the norms; they hold no tensor."""

    def __init__(self, means: Means) -> None:
        self._means, self._backward = means, -1
        self._row: Tensor | None = None

    @torch.no_grad()
    def hear(self, modality: int, grad: Tensor) -> None:
        """One latent's gradient; the first one of a backward takes a row."""
        backward = torch._C._current_graph_task_id()
        if self._row is None or backward != self._backward:
            (self._row,), self._backward = self._means.next_row(grad), backward
            self._row.fill_(NO_GRADIENT)
        norm = torch.linalg.vector_norm(grad, dtype=torch.promote_types(grad.dtype, torch.float32))
        self._row[1 + modality].copy_(norm)


class Leaves:
    """The hooks of leaf latents, which may be the same tensors in each step: one hook each.

    Any other tensor's hooks go with the step's graph. Copies of a monitor have none of these.
    """

    def __init__(self) -> None:
        self._handles: dict[int, RemovableHandle] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Leaves, ()

    def release(self, latents: Sequence[Tensor]) -> None:
        """Take back the hooks that an earlier step gave these."""
        for z in latents if self._handles else ():
            if z.is_leaf:
                handle = self._handles.pop(id(z), None)
                if handle is not None:
                    handle.remove()  # nothing, if that tensor is gone and this one has its id

    def keep(self, z: Tensor, handle: RemovableHandle) -> None:
        """Remember a new hook, and no longer those of leaves that are gone."""
        if not z.is_leaf:
            return
        kept = self._handles.items()
        self._handles = {k: x for k, x in kept if x.hooks_dict_ref() is not None}
        self._handles[id(z)] = handle
