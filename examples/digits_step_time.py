"""What the regularizer costs: over a multi-loss step, and beside the released formulation.

    python examples/digits_step_time.py [--turns 200] [--out DIR]

Steps take turns, so that noise hits all alike, and medians are taken. Times are those of the
processor for the one thread that works: other programs of a shared machine wait beside it.
"""

import argparse
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from digits_data import NUM_CLASSES, Split
from digits_files import WHERE, caption, environment
from tabulate import tabulate
from torch import Tensor, nn
from train_digits import BATCH, BatchLoss, TwoModalities, mcr, multi_loss

import mcr_fast
from bench import results

NUM_PERMUTATIONS = 32
WARM_UP = 3
FUSED_A_TURN = 20  # a fused step is so short that each turn affords several
PARTS = ("forward_ms", "backward_ms", "adam_ms")
COLUMNS = ("size", "method", *PARTS, "added_percent", "goal_percent", "turns", *WHERE)


@dataclass(frozen=True)
class Size:
    """A model of two modalities, a batch, and the most that MCR may add to a step."""

    rows: int
    widths: tuple[int, int]
    hidden: int
    latent: int
    goal: float


SIZES = {
    "the demo's networks, N = 32": Size(BATCH, (64, 26), 128, 16, 0.3),
    "512-wide encoders, N = 128": Size(128, (512, 512), 512, 512, 0.08),
}


@dataclass(frozen=True)
class Cost:
    """Medians of training steps, in milliseconds of one thread: forward, backward, optimizer."""

    multi_loss: tuple[float, float, float]
    mcr: tuple[float, float, float]
    added: float  # by MCR, as a share of a whole step of multi-loss
    goal: float


def milliseconds(step: Callable[[], object]) -> float:
    start = time.thread_time()
    step()
    return 1e3 * (time.thread_time() - start)


def step_of(size: Size, loss: BatchLoss) -> Callable[[], tuple[float, float, float]]:
    """A training step on the same random batch every time, and how long its parts take."""
    torch.manual_seed(0)
    model = TwoModalities(size.widths, size.hidden, size.latent)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    first, second = (torch.randn(size.rows, width) for width in size.widths)
    batch = Split((first, second), torch.arange(size.rows) % NUM_CLASSES)

    def step() -> tuple[float, float, float]:
        at = [time.thread_time()]
        total = loss(model, batch)
        at.append(time.thread_time())
        optimizer.zero_grad()
        total.backward()
        at.append(time.thread_time())
        optimizer.step()
        at.append(time.thread_time())
        forward, backward, update = (1e3 * (b - a) for a, b in itertools.pairwise(at))
        return forward, backward, update

    return step


def cost_of(size: Size, turns: int) -> Cost:
    """A step of MCR against the same step without the regularizer, written in plain torch."""
    losses = [multi_loss(3.0), mcr(3.0, 0.1, 1.0, latent=size.latent)]
    steps = [step_of(size, loss) for loss in losses]
    taken = [[step() for step in steps] for _ in range(WARM_UP + turns)][WARM_UP:]
    times = np.array(taken)  # [turns, 2, 3]
    whole = np.median(times.sum(2), axis=0)
    multi, ours = np.median(times, axis=0).tolist()
    return Cost(tuple(multi), tuple(ours), float(whole[1] / whole[0]) - 1, size.goal)


def in_turns(steps: Sequence[Callable[[], object]], turns: int) -> list[float]:
    """The median time of each."""
    taken = [[milliseconds(step) for step in steps] for _ in range(WARM_UP + turns)]
    return np.median(np.array(taken[WARM_UP:]), axis=0).tolist()


def against_released(turns: int) -> tuple[float, float] | None:
    """L_MIPD + L_Con from the demo's latents to gradients: fused, released; None without it.

    The baseline's contrastive term is pytorch-metric-learning's.
    """
    try:
        from bench.released import published_nt_xent, released_step

        size = SIZES["the demo's networks, N = 32"]
        regularizer = mcr_fast.MCRLoss(
            [size.latent] * 2, NUM_CLASSES, num_permutations=NUM_PERMUTATIONS
        )
        contrastive = published_nt_xent(regularizer.temperature)
    except ImportError:
        return None
    torch.manual_seed(0)
    latents: list[Tensor] = [torch.randn(size.rows, size.latent).requires_grad_() for _ in "ab"]
    labels = torch.arange(size.rows) % NUM_CLASSES
    fusion = nn.Linear(2 * size.latent, NUM_CLASSES)
    weights = {
        "mipd_weight": regularizer.mipd_weight,
        "contrastive_weight": regularizer.contrastive_weight,
    }

    def fused() -> None:
        for _ in range(FUSED_A_TURN):
            regularizer(latents, labels, fusion=fusion).loss.backward()

    def released() -> None:
        drawn = (fusion, NUM_PERMUTATIONS, contrastive)
        released_step(latents, labels, *drawn, **weights).backward()

    ours, theirs = in_turns([fused, released], turns)
    return ours / FUSED_A_TURN, theirs


def costs(turns: int) -> list[dict[str, str]]:
    """A row for each size and method, as it is written."""
    rows = []
    for name, size in SIZES.items():
        cost = cost_of(size, turns)
        for method, times in (("multi-loss", cost.multi_loss), ("MCR", cost.mcr)):
            row = {"size": name, "method": method, "turns": str(turns)}
            row |= {part: f"{ms:.4f}" for part, ms in zip(PARTS, times, strict=True)}
            if method == "MCR":
                row |= {"added_percent": f"{100 * cost.added:.1f}"}
                row |= {"goal_percent": f"{100 * cost.goal:.0f}"}
            rows.append(row)
    return rows


def costs_table(rows: Sequence[Mapping[str, str]], form: str = "simple") -> str:
    """What MCR adds to a step of multi-loss, and whether that is as little as it should be."""
    lines = []
    for row in rows:
        times = [float(row[part]) for part in PARTS]
        cells = [f"{ms:.2f}" for ms in (*times, sum(times))]
        added, goal = row.get("added_percent"), row.get("goal_percent")
        verdict = ["", ""]
        if added and goal:
            reached = "reached" if float(added) <= float(goal) else "MISSED"
            verdict = [f"{float(added):+.0f} %", f"<= {goal} %, {reached}"]
        name = row["size"] if row["method"] == "multi-loss" else ""
        lines.append([name, row["method"], *cells, *verdict])
    headers = ("a training step, ms", "", "forward", "backward", "Adam", "all", "added", "goal")
    align = ("left", "left", *["right"] * 5, "left")
    return tabulate(lines, headers, tablefmt=form, colalign=align, disable_numparse=True)


def released_in_words(turns: int) -> str:
    """The sentence on the released formulation."""
    found = against_released(turns)
    if found is None:
        return "Not compared with the released formulation: no pytorch-metric-learning."
    ours, theirs = found
    return (
        f"L_MIPD + L_Con alone, forward and backward (N = {BATCH}, K = "
        f"{NUM_PERMUTATIONS}): {ours:.2f} ms fused, every row against all others;\n"
        f"{theirs:.1f} ms as released, {theirs / ours:.0f} times as long (six fusion passes on "
        "permuted copies, pytorch-metric-learning's NTXentLoss)."
    )


def costs_in_words(turns: int) -> str:
    """The table, and the sentence."""
    return f"{costs_table(costs(turns))}\n{released_in_words(max(2, turns // 8))}"


def write(rows: Sequence[dict[str, str]], folder: Path) -> None:
    """The rows, and the table of a page."""
    where = environment()
    results.write(folder / "step_time.csv", [row | where for row in rows], COLUMNS)
    what = f"{rows[0]['turns']} turns, load {where['load']} on {where['cores']} cores"
    below = caption(where, what, "examples/digits_step_time.py")
    results.write_text(folder / "step_time.md", f"{costs_table(rows, 'github')}\n\n{below}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--out", type=Path, help="folder of step_time.csv and step_time.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = costs(arguments.turns)
    print(costs_table(rows))
    print(released_in_words(max(2, arguments.turns // 8)))
    if arguments.out:
        write(rows, arguments.out)


if __name__ == "__main__":
    main()
