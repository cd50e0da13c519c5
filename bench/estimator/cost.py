"""Time and memory of a call of the regularizer, forward and backward, on one thread.

Times are the processor's for that thread.
"""

import multiprocessing
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from time import thread_time

import torch
from torch import Tensor, nn

import mcr_fast
from bench.memory import peak_rise
from bench.timer import Step, race

ROUNDS = 10


@dataclass(frozen=True)
class Size:
    """A fusion of two modalities."""

    width: int  # of a modality's latents
    classes: int
    hidden: int = 0  # of the fusion's hidden layer, which is linear without one
    largest: int = 1024  # rows


SIZES = {
    "linear, width 16, 8 classes": Size(16, 8),
    "linear, width 512, 6 classes": Size(512, 6),
    "linear, width 512, 100 classes": Size(512, 100),
    "MLP of 256, width 512, 6 classes": Size(512, 6, 256, largest=256),
}
TERMS = {"L_MIPD": 0.0, "MCRLoss": 1.0}  # weight of L_Con


def call_of(
    size: Size, num_rows: int, num_permutations: int | str, contrastive_weight: float
) -> Callable[[], None]:
    """A forward and backward of `MCRLoss`."""
    torch.manual_seed(0)
    latents = [torch.randn(num_rows, size.width, requires_grad=True) for _ in range(2)]
    labels = torch.arange(num_rows) % size.classes
    loss = mcr_fast.MCRLoss(
        [size.width] * 2,
        size.classes,
        num_permutations=num_permutations,
        contrastive_weight=contrastive_weight,
    )
    fusion: nn.Module = nn.Linear(2 * size.width, size.classes)
    if size.hidden:
        layers = [nn.Linear(2 * size.width, size.hidden), nn.GELU()]
        mlp = nn.Sequential(*layers, nn.Linear(size.hidden, size.classes))
        fusion = mcr_fast.AdditiveFusion.from_sequential(mlp, [size.width] * 2)

    def call() -> None:
        loss(latents, labels, fusion=fusion).loss.backward()

    return call


def times(
    size: Size, num_rows: int, counts: Sequence[int | str], seconds: float
) -> dict[tuple[str, int | str], float]:
    """Milliseconds by (term, K), all in turns."""
    calls = {
        (term, count): call_of(size, num_rows, count, weight)
        for term, weight in TERMS.items()
        for count in counts
    }
    steps = {f"{term} {count}": _step(call) for (term, count), call in calls.items()}
    found = race(steps, seconds, ROUNDS, thread_time)
    return {(term, count): 1e3 * found[f"{term} {count}"].p50 for term, count in calls}


def _step(call: Callable[[], None]) -> Step:
    def run(_: Tensor | None) -> None:
        call()

    return Step(run)


def _child(size: Size, num_rows: int, count: int | str, result: Connection) -> None:
    torch.set_num_threads(1)
    call_of(size, 4, "all", 0.0)()  # loads what there is to load
    result.send(peak_rise(call_of(size, num_rows, count, 0.0)))


def peak_mb(size: Size, num_rows: int, count: int | str) -> float | None:
    """Of L_MIPD, the gradients of the latents among it, in a process of its own; Linux only."""
    if sys.platform != "linux":
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receive, send = context.Pipe(duplex=False)
    child = context.Process(target=_child, args=(size, num_rows, count, send))
    child.start()
    send.close()
    try:
        return receive.recv() / 1e6
    except EOFError:
        return None
    finally:
        child.join()
