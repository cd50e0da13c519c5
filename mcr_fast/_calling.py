"""Calling a fusion for the caller: in its own mode, with its hooks, on copies of the latents."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mcr_fast import _checks as checks
from mcr_fast._reach import looking_hooks_only
from mcr_fast._wrapping import takes_joined, unwrapped

Fusion = nn.Module | Callable[[list[Tensor]], Tensor]


def call_fusion(
    fusion: Fusion, latents: Sequence[Tensor], num_classes: int, modules: Sequence[nn.Module] = ()
) -> Tensor:  # [N, C]
    """The clean logits; `modules`: those in which a backward hook may only look."""
    run: Callable[[Any], Tensor] = fusion
    if takes_joined(fusion):
        inputs: Tensor | list[Tensor] = torch.cat(tuple(latents), dim=-1)
    else:
        # it may write to them
        inputs = [z.clone() for z in latents]
    if torch.compiler.is_compiling():
        logits: Tensor = run(inputs)
    else:
        with looking_hooks_only(modules):
            logits = _explained(run, inputs)
    checks.fusion_output(logits, latents[0].shape[0], num_classes)
    return logits


def _explained(fusion: Callable[[Any], Tensor], inputs: Tensor | list[Tensor]) -> Tensor:
    try:
        return fusion(inputs)
    except (TypeError, AttributeError) as error:
        given = "their concatenation" if isinstance(inputs, Tensor) else "the list of the latents"
        raise TypeError(
            f"fusion could not be called with {given}: {error}. A fusion gets the list of the M "
            "latents; an nn.Linear, or an nn.Sequential that starts with one, gets their "
            "concatenation. For another module over joined latents pass "
            "fusion=lambda z: module(torch.cat(z, -1))"
        ) from error


def as_callable(fusion: Fusion) -> Callable[[list[Tensor]], Tensor]:
    """The fusion as a function of the list of latents, for the regularizer's own runs.

    Without a data-parallel wrapper, which prepares for one backward a call.
    """
    run: Callable[[Any], Tensor] = (
        unwrapped(fusion) if type(fusion).__name__ in _PER_PROCESS else fusion
    )
    if takes_joined(fusion):
        return lambda latents: run(torch.cat(latents, dim=-1))
    return run


_PER_PROCESS = ("DistributedDataParallel", "DataParallel")
