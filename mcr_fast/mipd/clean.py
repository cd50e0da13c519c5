"""Calling a fusion for the caller: in its own mode, with its hooks, on copies of the latents."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from mcr_fast import _checks as checks
from mcr_fast._wrapping import takes_joined
from mcr_fast.mipd.apart import looking_hooks_only, noting
from mcr_fast.mipd.reach import Reached
from mcr_fast.mipd.request import Fusion


def call_fusion(
    fusion: Fusion, latents: Sequence[Tensor], num_classes: int, reached: Reached | None = None
) -> Tensor:  # [N, C]
    """The clean logits; the modules that were called are added to those that were `reached`."""
    run: Callable[[Any], Tensor] = fusion
    if takes_joined(fusion):
        inputs: Tensor | list[Tensor] = torch.cat(tuple(latents), dim=-1)
    else:
        # it may write to them
        inputs = [z.clone() for z in latents]
    if torch.compiler.is_compiling():
        logits: Tensor = run(inputs)
    elif reached is None:
        logits = explained(run, inputs)
    else:
        called = {id(module): module for module in reached.modules}
        # compiled code would be compiled anew for a hook
        unknown = not (reached.compiled or isinstance(fusion, nn.Module))
        with looking_hooks_only(reached.modules), noting(called) if unknown else nullcontext():
            logits = explained(run, inputs)
        reached.modules[:] = called.values()
    checks.fusion_output(logits, latents[0].shape[0], num_classes)
    return logits


def explained(fusion: Callable[[Any], Tensor], inputs: Tensor | list[Tensor]) -> Tensor:
    """What it gives; an error of a fusion that takes something else says what it is given.

    Raises:
        TypeError: that error.
    """
    try:
        return fusion(inputs)
    except RuntimeError as error:
        if "dtype" not in str(error):
            raise
        latents = inputs if isinstance(inputs, list) else [inputs]
        raise TypeError(
            f"fusion could not be called with latents of {[z.dtype for z in latents]}: {error}. "
            "Cast them to the dtype of its weights, or call the loss under the autocast of the "
            "encoders"
        ) from error
    except (TypeError, AttributeError) as error:
        given = "their concatenation" if isinstance(inputs, Tensor) else "the list of the latents"
        raise TypeError(
            f"fusion could not be called with {given}: {error}. A fusion gets the list of the M "
            "latents; an nn.Linear, or an nn.Sequential that starts with one, gets their "
            "concatenation. For another module over joined latents pass "
            "fusion=lambda z: module(torch.cat(z, -1))"
        ) from error
