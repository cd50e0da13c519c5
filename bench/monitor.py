"""What a monitor costs a training step, and what the regularizer does, on the CPU.

    python -m bench monitor [--steps 100]

Steps of Algorithm 1 with Adam take turns, so that noise hits all alike. Times are those of the
processor for the one thread that works: the other programs of a shared machine wait beside it, but
still take some of its caches.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from time import thread_time
from typing import Any
from unittest import mock

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy

import mcr_fast
from bench import machine
from mcr_fast.monitor import CSVLog, TensorBoardLog, _hooks, _monitor

NAMES = ("one", "other")


@dataclass(frozen=True)
class Size:
    rows: int
    width: int
    hidden: int
    latent: int
    classes: int


SIZES = {
    "5 M parameters in the encoders, N = 256, latents of 128": Size(256, 512, 1300, 128, 10),
    "5 M parameters in the encoders, N = 256, latents of 512": Size(256, 512, 1150, 512, 10),
    "0.7 M parameters, N = 256, latents of 64": Size(256, 128, 512, 64, 10),
    "the demo, 46 k parameters, N = 32, latents of 16": Size(32, 32, 128, 16, 10),
}


class Training:
    """One model and its steps."""

    def __init__(self, size: Size, *, regularizes: bool = True) -> None:
        torch.manual_seed(0)
        self.encoders = nn.ModuleList(
            nn.Sequential(
                *(nn.Linear(size.width, size.hidden), nn.ReLU()),
                *(nn.Linear(size.hidden, size.hidden), nn.ReLU()),
                nn.Linear(size.hidden, size.latent),
            )
            for _ in NAMES
        )
        self.heads = nn.ModuleList(nn.Linear(size.latent, size.classes) for _ in NAMES)
        self.fusion = nn.Linear(len(NAMES) * size.latent, size.classes)
        layers = nn.ModuleList([self.encoders, self.heads, self.fusion])
        self.optimizer = torch.optim.Adam(layers.parameters())
        self.inputs = [torch.randn(size.rows, size.width) for _ in NAMES]
        self.labels = torch.arange(size.rows) % size.classes
        self.mcr = mcr_fast.MCRLoss([size.latent] * len(NAMES), size.classes)
        self.regularizes = regularizes

    def step(self, watch: Callable[..., None] | None = None) -> None:
        """Forward, backward, optimizer; `watch` sees what the forward made."""
        latents = [encode(x) for encode, x in zip(self.encoders, self.inputs, strict=True)]
        alone = [head(z) for head, z in zip(self.heads, latents, strict=True)]
        if self.regularizes:
            out = self.mcr(latents, self.labels, fusion=self.fusion)
            logits, extra = out.logits, out.loss
        else:
            out, logits, extra = None, self.fusion(torch.cat(latents, 1)), torch.zeros(())
        task = cross_entropy(logits, self.labels)
        if watch is not None:
            watch(out, self.labels, alone, latents, task)
        own = torch.stack([cross_entropy(x, self.labels) for x in alone]).sum()
        self.optimizer.zero_grad()
        (task + 3 * own + extra).backward()
        self.optimizer.step()


def by_monitor(monitor: mcr_fast.MCRMonitor) -> Callable[..., None]:
    def watch(out: Any, labels: Tensor, alone: list[Tensor], latents: Any, task: Tensor) -> None:
        monitor.update(out, labels, alone, latents=latents)

    return watch


def importance_by_hand(path: Path) -> Callable[..., None]:
    """A line a step in a file."""
    file = path.open("w", encoding="utf-8")

    def watch(out: Any, *_: Any) -> None:
        print(*out.importance.tolist(), out.mipd.item(), out.contrastive.item(), file=file)

    return watch


def accuracies_by_hand(out: Any, labels: Tensor, alone: list[Tensor], *_: Any) -> None:
    _ = [(x.argmax(1) == labels).float().mean().item() for x in (out.logits, *alone)]


def cosine_by_hand(out: Any, labels: Tensor, alone: Any, latents: Any, task: Tensor) -> None:
    """As a user would: the gradients of both losses, of the latents."""
    both = [torch.autograd.grad(x, latents, retain_graph=True) for x in (task, out.loss)]
    for of_task, of_loss in zip(*both, strict=True):
        cosine_similarity(of_task.flatten(), of_loss.flatten(), dim=0).item()


@contextmanager
def time_inside() -> Iterator[list[float]]:
    """Seconds of each call of the monitor's own code."""
    spent: list[float] = []

    def timed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            start = thread_time()
            try:
                return function(*args, **kwargs)
            finally:
                spent.append(thread_time() - start)

        return call

    own = (_monitor.MCRMonitor, "update"), (_monitor.MCRMonitor, "_hear"), (_hooks.Norms, "hear")
    patches = [mock.patch.object(at, name, timed(getattr(at, name))) for at, name in own]
    for patch in patches:
        patch.start()
    try:
        yield spent
    finally:
        for patch in patches:
            patch.stop()


def measure(size: Size, steps: int, folder: Path) -> list[tuple[str, ...]]:
    """A line each: what, milliseconds, percent of the step without it."""
    training, bare = Training(size), Training(size, regularizes=False)
    monitors = {
        "MCRMonitor, with a CSV file": mcr_fast.MCRMonitor(2, log=CSVLog(folder / "log.csv")),
        "MCRMonitor, stride 1": mcr_fast.MCRMonitor(2, stride=1),
    }
    if find_spec("tensorboard"):
        log = TensorBoardLog(folder)
        monitors["MCRMonitor, TensorBoard"] = mcr_fast.MCRMonitor(2, log=log)
    contestants: dict[str, Callable[[], None]] = {
        "without the regularizer": bare.step,
        "with it": training.step,
        "by hand: importance and losses to a file": partial(
            training.step, importance_by_hand(folder / "hand")
        ),
        "by hand: accuracies": partial(training.step, accuracies_by_hand),
        "by hand: cosine of the gradients": partial(training.step, cosine_by_hand),
    }
    taken: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(steps + 2):
        for name, step in contestants.items():
            start = thread_time()
            step()
            if turn >= 2:  # what is done once
                taken[name].append(thread_time() - start)
    base = statistics.median(taken["with it"])
    lines = [("with it", f"{1e3 * base:.2f}", "")]
    for name, seconds in taken.items():
        if name != "with it":
            pairs = zip(seconds, taken["with it"], strict=True)
            extra = statistics.median(a - b for a, b in pairs)
            if name == "without the regularizer":
                extra, name = -extra, "of which the regularizer"
            lines.append((name, f"{1e3 * extra:.3f}", f"{100 * extra / base:.1f}"))
    for name, monitor in monitors.items():
        watch = by_monitor(monitor)
        for _ in range(2):
            training.step(watch)
        with time_inside() as spent:
            for _ in range(steps):
                training.step(watch)
        extra = sum(spent) / (monitor.step - 2)
        lines.append((name, f"{1e3 * extra:.3f}", f"{100 * extra / base:.1f}"))
    return lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=100, help="of each kind; 50 are a record")
    parser.set_defaults(command=main)


def main(options: argparse.Namespace) -> int:
    """Measure and print."""
    torch.set_num_threads(1)
    print(f"{machine.device()}, one thread, torch {torch.__version__}, load {machine.load():.1f}")
    with tempfile.TemporaryDirectory() as folder:
        for name, size in SIZES.items():
            print(f"\n{name}")
            lines = measure(size, options.steps, Path(folder))
            header = ("step of Algorithm 1", "ms", "% of the step")
            print(
                tabulate(lines, header, disable_numparse=True, colalign=("left", "right", "right"))
            )
    return 0
