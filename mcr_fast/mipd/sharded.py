"""Fusions whose parameters fully_shard spreads over processes (FSDP2).

A unit of fully_shard gathers its parameters when it is called, and reduces their gradients in the
backward of what the call gave. The regularizer runs a fusion many times and goes back each time,
which through the units' hooks would gather in every run, and reduce and end the step of all units
in every way back. So a whole step of the regularizer is made one call of the fusion's units: their
parameters are plain tensors meanwhile, and its runs pass none of their hooks.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from mcr_fast._wrapping import is_sharded, is_unit, unwrapped
from mcr_fast.mipd.apart import noting, without_trace
from mcr_fast.mipd.clean import explained
from mcr_fast.mipd.reach import reach
from mcr_fast.mipd.request import Request
from mcr_fast.ops.regularizer import Terms

_METHOD = "_mcr_fast_step"
_Compute = Callable[[Request], Terms]


def as_one_call(request: Request, compute: _Compute) -> Terms:
    """What `compute` makes of the request, as one call of the units inside of the fusion.

    Raises:
        TypeError: a fusion whose parameters are spread over processes in another way.
    """
    if torch.compiler.is_compiling() or not _is_distributed():
        return compute(request)
    modules = _run_by(request)
    step = _Step(request, compute, modules)
    step.call(_one_of_each_group(step.units), tuple(request.latents))
    assert step.terms is not None, "called"
    return step.terms


def _is_distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _run_by(request: Request) -> list[nn.Module]:
    """The modules that a fusion runs, those that hold others first; none if nothing is spread."""
    fusion = request.fusion
    if isinstance(fusion, nn.Module):
        return [*fusion.modules()]
    reached = reach(fusion).modules
    if not any(is_unit(m) or is_sharded(m) for m in reached):
        return []
    # a function reaches more than it runs, as the model around it
    called: dict[int, nn.Module] = {}
    rows = [z[:2].clone() for z in request.latents]
    try:
        with torch.no_grad(), without_trace(rows[0].device, reached), noting(called):
            explained(fusion, rows)
    except (RuntimeError, TypeError):
        _refuse_sharded(called.values())
        raise
    return sorted(called.values(), key=lambda m: -sum(1 for _ in m.modules()))


def _one_of_each_group(units: Sequence[Any]) -> list[nn.Module]:
    """Units that were made together are gathered together."""
    found: dict[int, nn.Module] = {}
    for unit in units:
        found.setdefault(id(unit._get_fsdp_state()), unit)
    return [*found.values()]


def _refuse_sharded(modules: Iterable[nn.Module]) -> None:
    """Raise for a module whose parameters are spread over processes while the regularizer runs."""
    sharded = next((m for m in modules if is_sharded(m)), None)
    if sharded is None:
        return
    name = type(sharded).__name__
    if not any(type(p).__name__ == "DTensor" for p in sharded._parameters.values()):
        raise TypeError(
            f"fusion's {name} is sharded (FSDP1), and the regularizer runs it on its own: shard "
            "with fully_shard (FSDP2), which works, or leave the fusion out of the wrapping, so "
            "that its parameters belong to the unit around it, and call the loss in that unit's "
            "forward"
        )
    raise TypeError(
        f"fusion's {name} is sharded (DTensor), and the regularizer runs it on its own: leave the "
        "fusion out of the plan of parallelize_module; of fully_shard make it a unit of its own, "
        "fully_shard(fusion), or call the loss in the forward of the unit that holds it"
    )


class _Step:
    """A step of the regularizer, to be called by units as their forward."""

    def __init__(self, request: Request, compute: _Compute, modules: Sequence[nn.Module]):
        self.request, self.compute, self.modules = request, compute, modules
        self.units = [m for m in modules if is_unit(m)]
        self.whole = unwrapped(request.fusion)  # which is given the latents, if it is a unit
        self.terms: Terms | None = None

    def call(self, units: Sequence[nn.Module], latents: tuple[Tensor, ...]) -> list[Tensor]:
        """Compute within the units that are left, on latents as their fusion gets them."""
        if not units:
            return self._compute(self.request._replace(latents=list(latents)))
        unit, *others = units
        given = latents if unit is self.whole else ()
        # Registered for one call: the same forward hooks run as for the unit's own.
        vars(unit)[_METHOD] = lambda *cast: self.call(others, cast or latents)
        torch.distributed.fsdp.register_fsdp_forward_method(unit, _METHOD)
        try:
            outputs: list[Tensor] = getattr(unit, _METHOD)(*given)
        finally:
            vars(unit).pop(_METHOD, None)
        return outputs

    def _compute(self, request: Request) -> list[Tensor]:
        with _without_unit_hooks(self.units, self.whole):
            _refuse_sharded(self.modules)
            self.terms = self.compute(request)
        # A unit's backward begins at these; in what dtype it would give them is nobody's concern.
        return [self.terms.loss, self.terms.mipd, self.terms.logits]


_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


@contextmanager
def _without_unit_hooks(units: Sequence[nn.Module], whole: object) -> Iterator[None]:
    """Calls of units without fully_shard's hooks, but with the dtypes of their mixed precision.

    `whole` is the unit whose inputs have its dtype already.
    """
    kept = []
    for unit in units:
        replacements = _casts(unit, unit is not whole)
        for name, replacement in zip(_HOOKS, replacements, strict=True):
            hooks = getattr(unit, name)
            kept.append((unit, name, hooks))
            others = OrderedDict(
                (key, replacement if _is_of_unit(hook) else hook) for key, hook in hooks.items()
            )
            left = OrderedDict((key, hook) for key, hook in others.items() if hook is not None)
            object.__setattr__(unit, name, left)
    try:
        yield
    finally:
        for unit, name, hooks in kept:
            object.__setattr__(unit, name, hooks)


def _is_of_unit(hook: object) -> bool:
    return str(getattr(hook, "__module__", "")).startswith("torch.distributed.fsdp.")


def _casts(unit: Any, inputs: bool) -> tuple[Any, Any]:
    """Hooks before and after a call that cast as the unit's own do; None where nothing is cast."""
    policy = unit._get_fsdp_state()._mp_policy
    dtype, given = policy.param_dtype, policy.output_dtype
    before = after = None
    if inputs and policy.cast_forward_inputs and dtype is not None:

        def before(module: nn.Module, args: Any, kwargs: Any) -> Any:
            return _cast(args, dtype), _cast(kwargs, dtype)

    if given is not None and any(p.dtype != given for p in unit.parameters()):

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            return _cast(output, given)

    return before, after


def _cast(values: Any, dtype: torch.dtype) -> Any:
    return tree_map_only(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, values)
