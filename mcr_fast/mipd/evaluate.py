"""L_MIPD of latents and a fusion, by one of four ways to evaluate the fusion."""

from typing import Any

import torch
from torch import Tensor

from mcr_fast import _checks as checks
from mcr_fast._columns import LinearColumns
from mcr_fast._wrapping import initialize_lazy, is_data_parallel, unwrapped
from mcr_fast.fusion import Additive, adds_up_to_logits, as_additive, finish
from mcr_fast.mipd.apart import (
    looking_hooks_only,
    runs_apart,
    weights_computed_once,
    without_backward_hooks,
    without_preparations,
)
from mcr_fast.mipd.callable import CallableSource
from mcr_fast.mipd.clean import call_fusion
from mcr_fast.mipd.engine import perturbed_divergences
from mcr_fast.mipd.gradients import reaches
from mcr_fast.mipd.hidden import HiddenSource
from mcr_fast.mipd.reach import Reached, reach, to_evaluate
from mcr_fast.mipd.request import Fusion, Request
from mcr_fast.mipd.source import Source
from mcr_fast.ops.linear_permuted_divergence import can_fuse, fused_divergence
from mcr_fast.ops.permuted_divergence import permuted_divergence
from mcr_fast.ops.regularizer import Terms, regularizer, serves
from mcr_fast.reference._similarity import without_autocast

_Result = tuple[Tensor, Tensor, Tensor]


def seen_as(request: Request) -> Additive | None:
    """The fusion as the ways below take it, read once a step; None if it is to be called."""
    fusion = request.fusion
    initialize_lazy(fusion, request.latents)
    # a data-parallel fusion is called besides, and what draws or counts would do so twice
    if is_data_parallel(fusion) and to_evaluate(reach(unwrapped(fusion))):
        return None
    return as_additive(fusion, request.latent_dims)


def evaluate(request: Request, additive: Additive | None) -> _Result:  # [], [S], [N, C]
    """L_MIPD, the divergences without gradient, and the clean logits.

    | fusion                                | perturbed | evaluated |
    |---------------------------------------|-----------|-----------|
    | a linear layer over the latents       | permuted  | from the latents, in one op |
    | additive without head, that op absent | permuted  | from its contributions |
    | additive with a head                  | permuted  | its head, on hidden rows |
    | additive                              | replaced  | its head if any, on hidden rows |
    | anything else                         | either    | by calling it |
    """
    if additive is None:
        return _called(request)
    if additive.head is not None or not request.permutes():
        return _added(request, additive)
    if isinstance(additive, LinearColumns):
        return _from_latents(request, additive) or _from_contributions(request, additive)
    return _from_contributions(request, additive)


def runs(fusion: Fusion, perturbation: str) -> bool:
    """Whether the engine would run the fusion, or its head: no compiler follows it there."""
    return perturbation != "permute" or not adds_up_to_logits(fusion)


def evaluate_at_once(
    request: Request, columns: Additive | None, classes: Tensor, *others: Any
) -> tuple[Terms, str] | None:
    """All terms of a linear layer over the latents in one op, and the backend that served.

    None if no backend does. `others` are those that the op takes after the classes [N].
    """
    if request.logits is not None or not request.permutes() or is_data_parallel(request.fusion):
        return None
    if not isinstance(columns, LinearColumns) or columns.head is not None:
        return None
    latents, weight = columns.operands(request.latents)
    if weight.shape[0] != request.num_classes:
        return None  # and the error comes where others see it
    bias, pairs = columns.bias, (*request.pair_tensors(), *request.options().values())
    if bias is not None and bias.dtype != weight.dtype:
        bias = bias.to(weight.dtype)
    with without_autocast(weight.device):
        backend = serves(latents, weight, pairs, others[0], request.backend)
        if backend is None:
            return None
        terms = regularizer(latents, weight, bias, pairs, classes, *others, backend=backend)
    dtype = columns.called_dtype()
    if terms.logits.dtype != dtype:
        terms = terms._replace(logits=terms.logits.to(dtype))
    return terms, backend


def _from_latents(request: Request, columns: LinearColumns) -> _Result | None:
    """Contributions and divergences of a linear layer in one op; None if it does not serve here."""
    latents, weight = columns.operands(request.latents)
    arguments = (*request.pair_tensors(), *request.options().values())
    with without_autocast(weight.device):
        if not can_fuse(latents, weight, arguments, request.backend):
            return None
        divergences, contributions = fused_divergence(latents, weight, columns.bias, *arguments)
    logits = _clean_logits(request, columns, contributions)
    return -divergences.sum(), divergences.detach(), logits


def _from_contributions(request: Request, additive: Additive) -> _Result:
    contributions = additive.contributions(request.latents)
    logits = _clean_logits(request, additive, contributions)
    divergences = permuted_divergence(
        contributions,
        additive.bias,
        *request.pair_tensors(),
        **request.options(),
        backend=request.backend,
    )
    return -divergences.sum(), divergences.detach(), logits


def _clean_logits(request: Request, additive: Additive, contributions: Tensor) -> Tensor:  # [N, C]
    """The clean logits of an additive fusion, as calling it gives them."""
    wanted = (request.num_rows(), request.num_classes)
    if additive.head is None and (request.logits is not None or contributions.shape[1:] != wanted):
        checks.fusion_output(contributions[0], *wanted)
    if request.logits is not None:
        return request.logits
    if is_data_parallel(request.fusion):  # a call makes it ready for the backward
        return call_fusion(request.fusion, request.latents, request.num_classes)
    logits = finish(additive, contributions)
    checks.fusion_output(logits, *wanted)
    return logits


def _added(request: Request, additive: Additive) -> _Result:
    """An additive fusion that has a head, or whose latents are replaced by other than donors'."""
    reached = _reach(request, additive)
    with looking_hooks_only(reached.modules):  # a hook may look at the clean run
        contributions = additive.contributions(request.latents)
        logits = _clean_logits(request, additive, contributions)
    return *_play(request, logits, reached, additive, contributions), logits


def _called(request: Request) -> _Result:
    """A fusion that is any function of the latents."""
    reached = _reach(request, None)
    logits = request.logits
    if logits is None:
        logits = call_fusion(request.fusion, request.latents, request.num_classes, reached)
    return *_play(request, logits, reached), logits


def _reach(request: Request, additive: Additive | None) -> Reached:
    """What is run anew: a head alone, or the fusion as replaced latents are projected too."""
    return reach(additive.head if additive is not None and request.permutes() else request.fusion)


def _play(
    request: Request,
    logits: Tensor,  # [N, C]
    reached: Reached,
    additive: Additive | None = None,
    contributions: Tensor | None = None,  # [M, N, H], of an additive fusion
) -> tuple[Tensor, Tensor]:  # [], [S]
    """L_MIPD and the divergences of a fusion that has to be run."""
    if additive is None and request.logits is not None and request.clean_path == "routed":
        _refuse_others(request.latents, request.logits)
    modules = reached.modules
    apart = runs_apart(reached, request.fusion_mode)
    with without_preparations(modules), apart as changed:
        if additive is None or contributions is None:
            source: Source = CallableSource(request, modules)
            with weights_computed_once(modules, sum(request.latent_dims)):
                return perturbed_divergences(request, source, logits, not changed, modules)
        with without_backward_hooks(modules):
            source = HiddenSource(request, additive, contributions, changed)
        return perturbed_divergences(request, source, logits, not changed, modules)


def _refuse_others(latents: list[Tensor], logits: Tensor) -> None:
    """Raise if clean logits with a graph are not those of the latents."""
    wanted = [x for x in latents if x.requires_grad]
    if torch.is_grad_enabled() and wanted and logits.requires_grad and not reaches(logits, wanted):
        raise ValueError(
            "logits must be computed from these latents for clean_path='routed', but their "
            "graph does not reach them; leave logits out, or take another clean_path"
        )
