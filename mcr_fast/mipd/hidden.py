"""An additive fusion that is run: perturbed hidden rows by gather and add, then its head."""

import importlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from mcr_fast._wrapping import calls_its_class
from mcr_fast.fusion import Additive
from mcr_fast.mipd.draw import replaced_latents
from mcr_fast.mipd.gradients import GradientSums, Pulled, own
from mcr_fast.mipd.request import Request
from mcr_fast.mipd.source import CLEAN, Turn
from mcr_fast.ops._backend import resolve
from mcr_fast.reference._similarity import accumulation_dtype


class HiddenSource:
    """Hidden rows of an additive fusion, from contributions that are computed once."""

    def __init__(
        self,
        request: Request,
        fusion: Additive,
        contributions: Tensor,  # [M, N, H]
        changed: bool,  # the mode is another one than contributions were computed in
    ):
        # contributions are computed once, so that donors' rows are what the projections gave;
        # replaced latents are projected anew, and then the clean ones in the same mode
        replacements = [] if request.permutes() else _project_replaced(request, fusion)
        if replacements and changed:
            contributions = fusion.contributions(request.latents)
        self.fusion, self.contributions = fusion, contributions
        self.replacements = replacements  # M tensors [K, N, H]; none: donors' rows
        self.players: Sequence[Tensor] = [contributions, *replacements]
        x = contributions.detach()
        self.bias = fusion.bias
        dtype = x.dtype if self.bias is None else torch.promote_types(x.dtype, self.bias.dtype)
        # without a head the sum is the logits, which are not rounded to 16 bits
        self.dtype = accumulation_dtype(dtype) if fusion.head is None else dtype
        self.fused = request.permutes() and _triton_serves(request.backend, x, self.bias)
        # kernels convert what they read, and compute the head's first activation with it
        self.x = x.contiguous() if self.fused else x.to(accumulation_dtype(x.dtype))
        self.activation, self.rest = (
            split_activation(fusion.head) if self.fused else ("none", fusion.head)
        )
        self.hidden = x.sum(0, dtype=accumulation_dtype(x.dtype))
        if self.bias is not None:
            self.hidden = self.hidden + self.bias.detach()
        self.row_elements = x[0, :1].numel()
        self.wants_grad = any(p.requires_grad for p in self.players) or (
            self.bias is not None and self.bias.requires_grad
        )

    def wants_used(self, turn: Turn) -> bool:
        """What the head uses is shared."""
        return turn.head != 0

    def run(self, turn: Turn) -> tuple[list[GradientEdge | None], Tensor]:
        """Add what the subset changes to the clean hidden rows, run the head."""
        head = self.fusion.head
        if self._in_kernel(turn):
            rows = _launch("gather_add_fwd", *self._kernel_inputs(turn), self.dtype)
            head = self.rest
        else:
            rows = turn.safe(self._rows(turn).to(self.dtype))
        rows, edge = own(rows, self.wants_grad)
        return [edge], rows if head is None else head(rows)

    def _in_kernel(self, turn: Turn) -> bool:
        return self.fused and turn.subset != CLEAN

    def _kernel_inputs(self, turn: Turn) -> tuple[Any, ...]:
        rows = (turn.chunk.start, turn.chunk.stop)
        donors = turn.chunk.tables()
        return self.x, self.hidden, donors, turn.kept, turn.subset, *rows, self.activation

    def _rows(self, turn: Turn) -> Tensor:  # [R, H]
        chunk = turn.chunk
        rows = chunk.repeat(self.hidden)
        for m, x in enumerate(self.x):
            if not turn.replaces(m):
                continue
            if self.replacements:
                new = chunk.cut(self.replacements[m].detach())
            else:
                new = x[chunk.donors(m)]
            rows = rows + (new - chunk.repeat(x))
        return rows

    def collect(self, turn: Turn, pulled: Pulled, sums: GradientSums) -> None:
        """The gradient of a hidden row is that of every contribution in it."""
        for x, to_used in pulled.used:
            sums.of(x).add_(to_used, alpha=turn.head)
        (grad,), chunk = pulled.rows, turn.chunk
        if grad is None:
            return
        if self._in_kernel(turn):
            self._collect_fused(turn, grad, sums)
            return
        for m in range(len(self.x)):
            if turn.replaces(m) and self.replacements:
                part = sums.of(self.replacements[m])[chunk.first : chunk.last]
                part[:, chunk.start : chunk.stop] += chunk.fold(grad)
            elif turn.replaces(m):
                chunk.sum_by_donor(sums.of(self.contributions)[m], grad, m)
            elif turn.route[m] != 0:
                chunk.sum_by_row(sums.of(self.contributions)[m], grad, turn.route[m])
        if self.bias is not None and turn.head != 0:
            bias = sums.of(self.bias)
            bias.add_(grad.sum(0, dtype=bias.dtype), alpha=turn.head)

    def _collect_fused(self, turn: Turn, grad: Tensor, sums: GradientSums) -> None:
        chunk, total = turn.chunk, sums.of(self.contributions)
        inverse = chunk.tables(sign=-1)
        inputs = (grad, *self._kernel_inputs(turn), inverse, total)
        to_rows = _launch("gather_add_bwd", *inputs)  # [rows, H]; adds the donors' to the total
        for m, factor in enumerate(turn.route):
            if not turn.replaces(m) and factor != 0:
                total[m, chunk.start : chunk.stop].add_(to_rows, alpha=factor)
        if self.bias is not None and turn.head != 0:
            sums.of(self.bias).add_(to_rows.sum(0), alpha=turn.head)


def _project_replaced(request: Request, additive: Additive) -> list[Tensor]:
    """Contributions [K, N, H] of zeros or noisy latents, M of them. They carry a graph.

    So the gradient of one reaches its encoder and its projection with one factor.
    """
    return [
        additive.project(m, x.flatten(0, 1)).unflatten(0, x.shape[:2])
        for m, x in enumerate(replaced_latents(request))
    ]


def _triton_serves(backend: str | None, x: Tensor, bias: Tensor | None) -> bool:
    """Whether Triton's kernels take the hidden rows: where they take the rows' divergence.

    Raises:
        ValueError, RuntimeError: as `resolve`, which the rows' divergence would raise too.
    """
    dtypes = [x.dtype] if bias is None else [x.dtype, bias.dtype]
    if torch.float64 in dtypes:
        return False
    return resolve("row_divergence", backend, x.device, *dtypes) == "triton"


def _launch(name: str, like: Tensor, *arguments: Any) -> Tensor:
    """Call a launcher of the kernels, imported when it is first called, under the tensors' device.

    No dispatcher op: all tensors are cut from every graph, and no compiler is tracing.
    """
    launcher = getattr(importlib.import_module("mcr_fast.kernels.gather_add"), name)
    with torch.cuda.device_of(like):  # for CPU tensors a no-op
        launched: Tensor = launcher(like, *arguments)
    return launched


def split_activation(
    head: Callable[[Tensor], Tensor] | None,
) -> tuple[str, Callable[[Tensor], Tensor] | None]:
    """The activation that a head starts with, as a kernel can compute it, and what comes after.

    "none" and the whole head if it starts with something else, or where a hook would miss a call.
    """
    if type(head) is not nn.Sequential or len(head) == 0:
        return "none", head
    if not (calls_its_class(head) and calls_its_class(head[0])):
        return "none", head
    first = head[0]
    if type(first) is nn.ReLU:
        return "relu", head[1:]
    if type(first) is nn.GELU:
        return "gelu" if first.approximate == "none" else "gelu_tanh", head[1:]
    return "none", head
