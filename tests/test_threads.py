"""One loss that several threads call at once, as free-threaded Pythons invite to."""

import sys
import threading

import pytest
import torch
from torch import nn

from mcr_fast import AdditiveFusion, MCRLoss

THREADS, STEPS = 4, 32


@pytest.fixture
def hasty_switches():
    """Threads take turns a thousand times as often as they do by themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(before / 1000)
    yield
    sys.setswitchinterval(before)


def test_threads_share_a_loss(hasty_switches):
    """Each step gives what it gives alone: nothing of one call is seen by another."""
    torch.manual_seed(0)
    fusion = AdditiveFusion([nn.Linear(6, 5), nn.Linear(6, 5)]).double()
    loss = MCRLoss([6, 6], 5, num_permutations=3, ceb_weight=0.1).double()

    def step(seed: int) -> list[torch.Tensor]:
        g = torch.Generator().manual_seed(seed)
        latents = [torch.randn(24, 6, generator=g, dtype=torch.float64) for _ in range(2)]
        for latent in latents:
            latent.requires_grad_()
        labels = torch.randint(5, (24,), generator=g)
        out = loss(latents, labels, fusion=fusion, generator=g)
        parameters = [*fusion.parameters(), *loss.parameters()]
        return [out.loss, *torch.autograd.grad(out.loss, [*latents, *parameters])]

    alone = [step(seed) for seed in range(STEPS)]
    together: dict[int, list[torch.Tensor]] = {}
    start = threading.Barrier(THREADS)

    def work(first: int) -> None:
        start.wait()
        for seed in range(first, STEPS, THREADS):
            together[seed] = step(seed)

    threads = [threading.Thread(target=work, args=(first,)) for first in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # a step that raised is not there, and its thread has printed why
    for seed, expected in enumerate(alone):
        torch.testing.assert_close(together[seed], expected, rtol=1e-10, atol=1e-12)
