"""Time of a step that is next to no arithmetic: what calling the library costs its caller."""

import gc
from statistics import median
from time import perf_counter

import torch
from torch import nn

import mcr_fast

N, D, C = 2, 4, 3
ROUNDS, CALLS = 40, 25


def host_time() -> dict[str, tuple[float, float]]:
    """(least, median) seconds of two steps that take turns, on one thread.

    A step of `MCRLoss`, and a bare one: a linear layer of the concatenated latents, its sum and
    the gradients of that.
    """
    latents = [torch.randn(N, D, requires_grad=True) for _ in range(2)]
    linear, loss = nn.Linear(2 * D, C), mcr_fast.MCRLoss([D, D], C)
    labels = torch.arange(N) % C
    leaves = [*latents, *linear.parameters()]

    def regularizer() -> None:
        loss(latents, labels, fusion=linear).loss.backward()

    def bare() -> None:
        linear(torch.cat(latents, 1)).sum().backward()

    steps = {"MCRLoss": regularizer, "linear and sum": bare}
    taken: dict[str, list[float]] = {name: [] for name in steps}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    gc.disable()
    try:
        for turn in range(1 + ROUNDS):
            for name, step in steps.items():
                for _ in range(CALLS):
                    for leaf in leaves:
                        leaf.grad = None
                    start = perf_counter()
                    step()
                    taken[name].append(perf_counter() - start)
                if turn == 0:  # what is done once
                    taken[name].clear()
    finally:
        gc.enable()
        torch.set_num_threads(threads)
    return {name: (min(seconds), median(seconds)) for name, seconds in taken.items()}
