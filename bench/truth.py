"""How far float32 results are from the reference in float64, at sizes where that is large."""

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.case import Case
from bench.inputs import make_inputs
from bench.registry import Provider

# Above this many rows the dense float64 reference would not fit beside the rest.
DENSE_ROWS = 8192


def nt_xent_in_blocks(
    embeddings: list[Tensor],  # M tensors [N, D] float64
    labels: Tensor,  # [M*N]
    temperature: float,
    block_rows: int = 512,
) -> Tensor:  # []
    """NT-Xent of a block of anchors at a time; adds to the gradients of the embeddings itself."""
    x = F.normalize(torch.cat(embeddings), dim=1)
    rows = x.detach().requires_grad_()
    num_positive = int((labels.bincount() * (labels.bincount() - 1)).sum())
    total = rows.new_zeros(())
    for start in range(0, len(rows), block_rows):
        similarities = rows[start : start + block_rows] @ rows.T / temperature
        same = labels[start : start + block_rows, None] == labels
        log_negatives = similarities.masked_fill(same, -torch.inf).logsumexp(1)
        anchor, partner = same.nonzero(as_tuple=True)
        other = anchor + start != partner
        anchor, partner = anchor[other], partner[other]
        pairs = -F.logsigmoid(similarities[anchor, partner] - log_negatives[anchor])
        loss = pairs.sum() / num_positive
        loss.backward()
        total += loss.detach()
    x.backward(rows.grad)
    return total


def errors(ours: Provider, reference: Provider, case: Case, temperature: float) -> tuple:
    """(relative error of the loss, the worst relative L2 error of a gradient) of one case."""
    exact = make_inputs(case, dtype=torch.float64)
    if case.op == "nt_xent" and case.L > DENSE_ROWS:
        truth = nt_xent_in_blocks(exact.latents, exact.all_labels(), temperature)
    else:
        truth = reference.forward(exact)()
        truth.backward()
    inputs = make_inputs(case)
    loss = ours.forward(inputs)()
    loss.backward()
    found = [_gradient(x) for x in inputs.leaves()]
    true = [_gradient(x) for x in exact.leaves()]
    # a gradient that is 0 in truth (the bias, where two players cancel) is held to the largest one
    largest = max(g.norm() for g in true)
    worst = max(
        (mine - g).norm() / (g.norm() if g.norm() > 0 else largest)
        for mine, g in zip(found, true, strict=True)
    )
    return float((loss.detach() - truth.detach()).abs() / truth.detach().abs()), float(worst)


def _gradient(x: Tensor) -> Tensor:
    return (torch.zeros_like(x) if x.grad is None else x.grad).double()
