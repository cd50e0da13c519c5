"""The contrastive losses over a group's rows, as a function of this rank's.

The gradient is made in the forward, where the other ranks are at hand. The backward scales it and
talks to nobody, so that it may run at any time, or not at all.
"""

import math
from contextlib import suppress
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from mcr_fast import _checks as checks
from mcr_fast._checks.ranks import Ranks, device_of, group_of
from mcr_fast.distributed.agreement import Agreed, agree, agree_to_raise, asked
from mcr_fast.distributed.collectives import Columns, Gather, Home, Ring
from mcr_fast.distributed.passes import Anchors, value_and_gradient
from mcr_fast.ops._backend import resolve
from mcr_fast.ops._modes import has_tangent, recorded, refuse_batched
from mcr_fast.ops.nt_xent import nt_xent
from mcr_fast.ops.sup_con import sup_con
from mcr_fast.pairing import is_nan_code, of_all_rows
from mcr_fast.reference._similarity import accumulation_dtype


class Given(NamedTuple):
    """The arguments of a call on this rank, checked."""

    loss: str
    x: Tensor  # [L, D]
    codes: Tensor  # [L] or [N] int64
    present: Tensor | None  # [L] or [N, M] bool
    modalities: int
    labels: str  # what the codes were made of
    temperature: float
    backend: str | None


def _given(
    loss: str,
    embeddings: Any,
    labels: Any,
    temperature: Any,
    present: Any,
    backend: Any,
    name: str,
) -> Given:
    temperature, (x, codes, present) = checks.contrastive_arguments(
        embeddings, labels, temperature, present, backend, name
    )
    modalities = 1 if isinstance(embeddings, Tensor) else len(embeddings)
    kind = "None"
    if labels is not None:
        kind = "floats" if labels.dtype.is_floating_point else "integers"
    return Given(loss, x, codes, present, modalities, kind, temperature, backend)


def contrastive_of_rows(
    loss: str,  # "nt_xent" or "sup_con"
    x: Tensor,  # [L, D]
    codes: Tensor,  # [L] or [N] int64
    present: Tensor | None,  # [L] or [N, M] bool
    temperature: float,
    backend: str | None,
) -> Tensor:  # []
    """The loss of this process's rows alone."""
    op = sup_con if loss == "sup_con" else nt_xent
    return op(x, codes, present, temperature=temperature, backend=backend)


def contrastive_of_ranks(
    ranks: Ranks,
    loss: str,  # "nt_xent" or "sup_con"
    *given: Any,  # this rank's arguments, as of `_given`
) -> Tensor:  # []
    """The loss over all ranks' rows; its gradient is the group's size times that by these rows."""
    run = _uncompiled if torch.compiler.is_compiling() else _of_ranks
    value: Tensor = run(ranks, loss, *given)
    return value


def _of_ranks(
    ranks: Ranks,
    loss: str,
    embeddings: Any,
    labels: Any,
    temperature: Any,
    present: Any,
    backend: Any,
    name: str,
) -> Tensor:  # []
    group, rank, size = group_of(ranks.process_group)
    try:
        given = _given(loss, embeddings, labels, temperature, present, backend, name)
        if size > 1:
            _check_backend(given)
    except (TypeError, ValueError, RuntimeError):
        _let_others_know(ranks, group, size, embeddings)
        raise
    x = given.x
    if recorded() or has_tangent(x):
        _refuse(loss)
    if size == 1:
        _check_capacity(given, ranks)
        how = (given.temperature, given.backend)
        return contrastive_of_rows(loss, x, given.codes, given.present, *how)
    derived = torch.is_grad_enabled()
    with torch.no_grad():
        value, slopes = _of_group(given, ranks, (group, rank, size), derived)
    _check_capacity(given, ranks)  # after the collectives, in which others wait for this rank
    if slopes is None or not (derived and x.requires_grad):
        return value
    result: Tensor = _Attached.apply(x, value, [slopes], loss)[0]
    return result


# Collectives break the graph once, here, and not in each function on the way to them.
_uncompiled = _disable_dynamo(_of_ranks)


def _of_group(
    given: Given, ranks: Ranks, member: tuple[Any, int, int], derived: bool
) -> tuple[Tensor, Tensor | None]:  # [], [L, D]
    """The value, and the unit gradient if it was wanted; every rank runs through all of it."""
    (group, rank, size), x = member, given.x
    what = asked(
        *(given.loss, given.temperature, ranks.exchange, x),
        *(given.modalities, given.labels),
    )
    agreed, checksum = Agreed(_capacity(given, ranks), True, derived), what.checksum()
    if ranks.rows is None:
        derived = derived and x.requires_grad
        marked = given.present is not None
        agreed = agree(group, what, len(x), marked, derived, x.device, given.loss)
    if agreed.capacity == 0:  # on all ranks
        dtype = accumulation_dtype(x.dtype)
        return x.new_zeros((), dtype=dtype), x.new_zeros(x.shape, dtype=dtype)
    own = _own_rows(given, rank)
    if len(x) > agreed.capacity:
        own = Columns(own.rows[:0], own.codes[:0], None, 0)
        checksum = -1  # which is no rank's: the others' losses become NaN
    home = Home(own, agreed.capacity, agreed.marked, checksum)
    exchange = (Gather if ranks.exchange == "gather" else Ring)(group, rank, size, home)
    anchors = Anchors(own, given.loss, given.temperature, given.backend)
    value, slopes = value_and_gradient(anchors, exchange, agreed.derived, float(size))
    if ranks.rows is not None:
        value = torch.where(exchange.alike, value, math.nan)
        slopes = None if slopes is None else torch.where(exchange.alike, slopes, math.nan)
    return value, slopes


def _own_rows(given: Given, rank: int) -> Columns:
    """This rank's rows, with codes that no other rank's equal by chance."""
    x = given.x.detach().contiguous()
    codes, marks = of_all_rows(len(x), given.codes, given.present)
    if given.labels == "None":  # row i is of an instance of its own, on every rank
        codes = codes + (rank << 32)
    elif given.labels == "floats":  # NaN equals nothing, another rank's NaN neither
        codes = torch.where(is_nan_code(codes), codes + (rank << 32), codes)
    return Columns(x, codes.contiguous(), None if marks is None else marks.contiguous(), 0)


def _capacity(given: Given, ranks: Ranks) -> int:
    """Of a rank's block, if it was given."""
    return 0 if ranks.rows is None else ranks.rows * given.modalities


def _check_capacity(given: Given, ranks: Ranks) -> None:
    if ranks.rows is not None and len(given.x) > _capacity(given, ranks):
        raise ValueError(
            f"rows={ranks.rows} must be at least the rows of each modality on every rank, got "
            f"{len(given.x) // given.modalities}; the losses of the other ranks are NaN"
        )


def _check_backend(given: Given) -> None:
    """Raise for a backend that has no kernels of blocks, or cannot take these rows, before work."""
    try:
        resolve("contrastive_sums", given.backend, given.x.device, given.x.dtype)
    except RuntimeError as error:
        words = str(error).replace("contrastive_sums", f"{given.loss} with process_group=")
        raise RuntimeError(words) from None


def _let_others_know(ranks: Ranks, group: Any, size: int, embeddings: Any) -> None:
    """Have the other ranks raise too, where there is a collective to tell them."""
    if size == 1 or ranks.rows is not None:
        return
    first = embeddings
    if isinstance(embeddings, (list, tuple)) and embeddings:
        first = embeddings[0]
    with suppress(RuntimeError):  # the caller's own error says more
        agree_to_raise(group, first.device if isinstance(first, Tensor) else device_of(group))


def _refuse(loss: str) -> NoReturn:
    raise NotImplementedError(
        f"{loss} with process_group= talks to other processes in its forward and makes its "
        "gradient there, which torch.func, forward mode, torch.jit.trace, torch.export and fake "
        "tensors cannot record; call it outside of them, or leave process_group None"
    )


class _Attached(torch.autograd.Function):
    """The value as a node of the graph, whose gradient is known.

    That is an output of the node too, so that a second backward comes here, to an error, and not to
    a constant; and not to the embeddings, which may be written to once the loss is made.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, value: Tensor, slopes: list[Tensor], loss: str
    ) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*slopes)
        ctx.loss, ctx.dtype = loss, x.dtype
        return value.clone(), slopes[0]

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, to_slopes: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        if grad is None or to_slopes is not None:
            raise RuntimeError(
                f"{ctx.loss} with process_group= cannot be differentiated twice: its gradient is "
                "made in the forward, together with the other processes"
            )
        refuse_batched(ctx.loss, grad)
        (slopes,) = ctx.saved_tensors
        return (grad * slopes).to(ctx.dtype), None, None, None
