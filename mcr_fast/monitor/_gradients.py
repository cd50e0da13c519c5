"""Products of the task's and the regularizer's gradients of each modality's latents."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from mcr_fast.monitor._numbers import Numbers
from mcr_fast.ops._listen import Heard


class Apart(list[Tensor]):
    """Latents that L_Con alone gets."""


class Contrasted:
    """The gradients of L_Con alone, where it is an op of its own: of latents that only it gets.

    They come in the same backward as what the divergences' op has apart; the second to come joins
    both. A backward that lacks either of them joins nothing.
    """

    def __init__(self) -> None:
        self._count, self._backward = 0, -1
        self._grads: dict[int, Tensor] = {}
        self._join: Callable[[Tensor], None] | None = None

    def of(self, latents: list[Tensor]) -> Apart:
        """The latents again, for L_Con."""
        self._count = len(latents)
        made = Apart(z.view_as(z) for z in latents)
        for m, z in enumerate(made):
            z.register_hook(partial(self._hear, m))
        return made

    def join(self, with_gradients: Callable[[Tensor], None]) -> None:
        """Call it with the gradients [M, N, D] of this backward, when they are there."""
        self._begin()
        self._join = with_gradients
        self._try()

    def _hear(self, modality: int, grad: Tensor) -> None:
        self._begin()
        self._grads[modality] = grad
        self._try()

    def _begin(self) -> None:
        """Forget what an earlier backward left."""
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._grads, self._join, self._backward = {}, None, backward

    def _try(self) -> None:
        if self._join is None or len(self._grads) < self._count:
            return
        grads = torch.stack([self._grads[m] for m in range(self._count)])
        join, self._grads, self._join = self._join, {}, None
        join(grads)


def _columns(weight: Tensor, widths: tuple[int, ...]) -> Tensor:  # [M, C, D]
    """The layer's columns by modality, narrow ones filled up with zeros, which add nothing."""
    if len(set(widths)) == 1:
        return weight.unflatten(1, (len(widths), widths[0])).transpose(0, 1)
    return pad_sequence([w.T for w in weight.split(widths, dim=1)], batch_first=True).mT


@torch.no_grad()
def write_products(
    row: tuple[Tensor, ...],
    numbers: Numbers,
    heard: Heard,
    contrasted: Tensor | None = None,  # [M, N, D], L_Con's gradient where another op made it
    *,
    absent: bool,  # whether the step has no L_Con
) -> None:
    """Fill the parts of a row of `_rows.of_products` from what the backward of a step has apart.

    With the columns W_m of the layer, the task's gradient of Z_m is T W_m, that of the divergences
    U_m W_m, that of L_Con is there. Upstream factors wait until the row is read.
    """
    unit, weight, to_logits = heard.unit_grad, heard.weight, heard.to_logits
    (modalities, rows, classes), width = unit.shape, max(heard.widths)
    task = unit if to_logits is None else to_logits.expand(modalities, rows, classes)
    columns = _columns(weight, heard.widths)
    both = torch.stack((task, unit), 1).view(modalities, 2 * rows, classes)
    both = torch.bmm(both, columns).view(modalities, 2, rows * width)
    among = torch.bmm(both, both.mT).flatten(1)  # [M, 4]: tt, tp, pt, pp
    others, grads = heard.unit_grad_rows, heard.grads
    if contrasted is not None:
        others, grads = contrasted, (*grads[:2], numbers.one(1, unit))
    known = absent or others is not None
    if others is None:
        others = numbers.row((0.0,), unit).expand(modalities, 1, rows * width)
    others = others.reshape(modalities, 1, rows * width).to(both.dtype)
    across = torch.bmm(both, others.mT).squeeze(2)  # [M, 2]: tr, pr
    norms = torch.bmm(others, others.mT).squeeze(2)  # [M, 1]
    products = torch.cat((among[:, :2], among[:, 3:], across, norms), 1)
    counts = (rows, 0 if to_logits is None else rows, rows if known else 0)
    given = (numbers.one(x, unit) for x in counts)
    upstream = (numbers.one(0, unit) if grad is None else grad for grad in grads)
    weights = (numbers.one(x, unit) for x in heard.weights)
    torch._foreach_copy_(row[:-1], [*given, *upstream, *weights])
    row[-1].view(-1, modalities).copy_(products.T)
