"""Products of the task's and the regularizer's gradients of each modality's latents."""

import torch
from torch import Tensor

from mcr_fast.monitor._numbers import Numbers
from mcr_fast.ops.regularizer import Heard


@torch.no_grad()
def write_products(row: tuple[Tensor, ...], heard: Heard, numbers: Numbers) -> None:
    """Fill the parts of a row of `_rows.of_products` from what the backward of a step has apart.

    With the columns W_m of the layer, the task's gradient of Z_m is T W_m, that of the divergences
    U_m W_m, that of L_Con is there. Upstream factors wait until the row is read.
    """
    unit, weight = heard.unit_grad, heard.weight
    (modalities, rows, classes), width = unit.shape, weight.shape[1] // len(unit)
    to_logits = heard.to_logits
    task = unit if to_logits is None else to_logits.expand(modalities, rows, classes)
    columns = weight.unflatten(1, (modalities, width)).transpose(0, 1)  # [M, C, D]
    both = torch.stack((task, unit), 1).view(modalities, 2 * rows, classes)
    both = torch.bmm(both, columns).view(modalities, 2, rows * width)
    others = heard.unit_grad_rows.reshape(modalities, 1, rows * width)
    among = torch.bmm(both, both.mT).flatten(1)  # [M, 4]: tt, tp, pt, pp
    across = torch.bmm(both, others.mT).squeeze(2)  # [M, 2]: tr, pr
    norms = torch.bmm(others, others.mT).squeeze(2)  # [M, 1]
    products = torch.cat((among[:, :2], among[:, 3:], across, norms), 1)
    counts = (rows, 0 if to_logits is None else rows)
    if all(grad is None for grad in heard.grads[1:]) and heard.grads[0] is not None:
        row[0].copy_(numbers.row((*counts, 0, 0, 0, *heard.weights), unit))
        row[0][2:3].copy_(heard.grads[0])
    else:
        given = (numbers.one(x, unit) for x in counts)
        upstream = (numbers.one(0, unit) if grad is None else grad for grad in heard.grads)
        weights = (numbers.one(x, unit) for x in heard.weights)
        torch.stack((*given, *upstream, *weights), out=row[0])
    row[1].view(-1, modalities).copy_(products.T)
