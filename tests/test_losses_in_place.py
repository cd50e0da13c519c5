"""What people write to once a loss is made: the loss itself, and what it was made of."""

import pytest
import torch
from losses import LOSSES

from mcr_fast import MCRLoss


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_loss_may_be_added_to_in_place(loss, backend):
    a, b = (torch.randn(6, 4, requires_grad=True) for _ in range(2))
    wanted = torch.autograd.grad(loss(a, b, backend=backend) + a.sum(), (a, b))
    total = loss(a, b, backend=backend)
    total += a.sum()
    for x, y in zip(torch.autograd.grad(total, (a, b)), wanted, strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("weights", [(0.1, 1, 0), (0.1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)])
def test_a_step_may_be_added_to_in_place(weights):
    names = ("mipd_weight", "contrastive_weight", "ceb_weight")
    mcr, fusion = (
        MCRLoss([4, 4], 3, **dict(zip(names, weights, strict=True))),
        torch.nn.Linear(8, 3),
    )
    latents = [torch.randn(6, 4, requires_grad=True) for _ in range(2)]
    for loss in (0, 1):
        out = mcr(latents, torch.arange(6) % 3, fusion=fusion)
        total = (out.loss, out.contrastive + out.loss)[loss]
        total += out.logits.square().mean()
        total.backward()
