"""What it changes that each rank contrasts its own rows alone, as DistributedDataParallel has it.

Ranks of some rows each, 6 classes, two modalities: the gradient that averaging the ranks' local
losses gives, against that of the loss over all rows, from embeddings whose classes are more or less
apart.
One process computes both, there is nothing to communicate.

    python -m bench local_term [--ranks 4] [--rows 32]
"""

import argparse
import statistics
from collections.abc import Iterator

import torch
from tabulate import tabulate
from torch import Tensor

from mcr_fast import functional

ROWS, CLASSES, WIDTH, SEEDS = 32, 6, 64, 5
# Size of the classes' means, where the noise around them is 1.
APART = {"not apart": 0.0, "a little": 0.5, "apart": 1.0, "far apart": 2.0}
LOSSES = {"nt_xent": 0.5, "sup_con": 0.1}  # and their temperatures
HEADER = ("loss", "classes", "cosine", "norm, local / global")


def make_rows(ranks: int, rows: int, apart: float, seed: int) -> tuple[Tensor, Tensor]:
    """Embeddings [2, ranks * rows, D] and labels."""
    g = torch.Generator().manual_seed(seed)
    means = apart * torch.randn(2, CLASSES, WIDTH, generator=g, dtype=torch.float64)
    labels = torch.randint(CLASSES, (ranks * rows,), generator=g)
    noise = torch.randn(2, len(labels), WIDTH, generator=g, dtype=torch.float64)
    return means[:, labels] + noise, labels


def compared(
    loss: str, ranks: int, apart: float, seed: int, rows: int = ROWS
) -> tuple[float, float]:
    """Cosine of the averaged local gradient with the global one, and their ratio of norms."""
    x, labels = make_rows(ranks, rows, apart, seed)
    x.requires_grad_()
    of = getattr(functional, loss)
    how = {"temperature": LOSSES[loss]}
    (of_all,) = torch.autograd.grad(of(list(x), labels, **how), x)
    parts = zip(x.split(rows, dim=1), labels.split(rows), strict=True)
    mean = sum(of(list(z), y, **how) for z, y in parts) / ranks
    (local,) = torch.autograd.grad(mean, x)
    cosine = torch.cosine_similarity(local.flatten(), of_all.flatten(), dim=0)
    return float(cosine), float(local.norm() / of_all.norm())


def lines(ranks: int, rows: int = ROWS) -> Iterator[tuple[str, str, str, str]]:
    """The table: means over seeds."""
    for loss in LOSSES:
        for name, apart in APART.items():
            found = [compared(loss, ranks, apart, seed, rows) for seed in range(SEEDS)]
            cosine, ratio = (statistics.mean(of) for of in zip(*found, strict=True))
            yield loss, name, f"{cosine:.2f}", f"{ratio:.2f}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Of `python -m bench local_term`."""
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--rows", type=int, default=ROWS, help="of a rank")
    parser.set_defaults(command=_print)


def _print(options: argparse.Namespace) -> int:
    found = list(lines(options.ranks, options.rows))
    print(tabulate(found, HEADER, tablefmt="github", disable_numparse=True))
    return 0
