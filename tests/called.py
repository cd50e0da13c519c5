"""What the tests of called fusions share: a small loss, a fusion, and the oracle's verdict."""

import torch
from inputs import generator, make_latents
from oracle import Oracle
from torch import nn

import mcr_fast
from mcr_fast import MCRLoss

ROWS, C, D = 5, 3, 4
ROUTINGS = [("greedy", "routed"), ("independent", "shared"), ("collaborative", "detached")]


def table_of(num_rows=ROWS):
    return mcr_fast.sample_permutations(2, num_rows, generator=generator(3)).index()


def mcr(num_modalities=2, *, width=D, classes=C, **options):
    options = {"mipd_weight": 1.0, "contrastive_weight": 0.0} | options
    return MCRLoss([width] * num_modalities, classes, **options)


def doubles(module):
    torch.manual_seed(7)
    for p in module.parameters():
        with torch.no_grad():
            p.copy_(torch.randn(p.shape))
    return module.double()


def gradients(fusion, latents, routing, parameters, **arguments):
    """Divergences, logits, and the gradient of L_MIPD to the latents and the parameters."""
    for x in [*latents, *parameters]:
        x.grad = None
    loss = mcr(len(latents), strategy=routing[0], clean_path=routing[1], **arguments)
    out = loss(latents, None, fusion=fusion, permutations=table_of())
    out.mipd.backward()
    grads = [torch.zeros_like(x) if x.grad is None else x.grad for x in [*latents, *parameters]]
    return out, grads


def agrees(fusion, function, owned=(), *, routings=ROUTINGS, num_modalities=2):
    """MCRLoss with `fusion` is the oracle with `function`; `owned`: tensors, and whose they are.

    `function` uses the tensors of `owned` themselves.
    """
    latents = make_latents(2, num_modalities, ROWS)
    oracle = Oracle(function, latents, owned, table_of())
    for routing in routings:
        out, grads = gradients(fusion, latents, routing, [x for x, _ in owned])
        torch.testing.assert_close(out.divergences, oracle.divergences(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(out.logits, function(latents), rtol=1e-9, atol=1e-12)
        wanted = oracle.gradients(*routing)
        torch.testing.assert_close(
            grads, wanted, rtol=1e-8, atol=1e-12, msg=lambda m, r=routing: f"{r}: {m}"
        )


def joined(z):
    return torch.cat(list(z), -1)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2 * D, 6), nn.Linear(6, C)

    def forward(self, zs):
        return self.b(torch.tanh(self.a(torch.cat(list(zs), 1))))
