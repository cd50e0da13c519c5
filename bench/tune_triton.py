"""`python -m bench tune`: times the neighbours of all launch configurations, prints the best.

A neighbour differs from an entry of kernels/config.py in one number. Its results must agree with
those of the entry, and it must be faster by more than noise, to take its place.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import torch

from bench.case import Case
from bench.gpu.command import why_not
from bench.gpu_timer import time_step
from bench.inputs import make_inputs
from bench.registry import benchmarks
from bench.timer import step

if TYPE_CHECKING:
    from mcr_fast.kernels.config import Config

MARGIN = 0.97  # of the entry's time: less is noise
ELEMENTS = 1 << 27  # (pair, class) elements of a divergence
REGISTERS = 2048  # of a lane of a multiprocessor's 32: one warp's share, times its warps

PAIRS = Case("permuted_divergence", K=32, donors="cyclic", start="contributions")
CONTRASTIVE = Case("nt_xent", N=8192, D=512, C=500, dtype="bfloat16")
# what an entry's size is of, on which case it is timed, and how
KERNELS: dict[str, tuple[str, Case, str]] = {
    "pairs_own_side": ("C", PAIRS, "full"),
    "pairs_value": ("C", PAIRS, "fwd"),
    "pairs_donor_side": ("C", PAIRS, "full"),
    "row_divergence": ("C", Case("row_divergence", K=32, M=0, dtype="bfloat16"), "full"),
    "similarity_16": ("L", CONTRASTIVE, "full"),
    "similarity_32": ("L", replace(CONTRASTIVE, dtype="float32"), "full"),
    "positives_16": ("L", CONTRASTIVE, "full"),
    "positives_32": ("L", replace(CONTRASTIVE, dtype="float32"), "full"),
    "rows": ("D", CONTRASTIVE, "full"),
    "partial_sums": ("L", CONTRASTIVE, "full"),
    "reconstruction_loss": ("D", Case("reconstruction_loss", N=65536), "full"),
}


def size_of(table: tuple[Config, ...], at: int, largest: int) -> int:
    """A size of an entry's class: its end, or for the open one twice where it begins."""
    if table[at].up_to < 1 << 40:
        return table[at].up_to
    return 2 * table[at - 1].up_to if at else largest


def case_of(kernel: str, table: tuple[Config, ...], at: int) -> tuple[Case, str]:
    """The case on which an entry is timed, and the mode."""
    axis, case, mode = KERNELS[kernel]
    size = size_of(table, at, case.L if axis == "L" else 512)
    if axis == "L":
        return replace(case, N=size // 2 if size <= 4096 else case.N), mode
    case = replace(case, **{axis: size})
    if case.op == "reconstruction_loss":
        # an entry's size is one modality's width
        return case, mode
    if axis == "C":
        case = replace(case, N=max(256, min(65536, ELEMENTS // (2 * case.K * size))))
    return case, mode


def neighbours(config: Config) -> Iterator[Config]:
    """Configurations that differ from one in one number."""
    for name, block in config.blocks.items():
        for changed in (block // 2, block * 2):
            # as many classes as the class of sizes has must fit into a row
            if changed and (name != "BLOCK_C" or changed >= min(config.up_to, 1 << 12)):
                yield config._replace(blocks={**config.blocks, name: changed})
    for warps in (config.num_warps // 2, config.num_warps * 2):
        if 1 <= warps <= 16:
            limit = config.max_registers and min(config.max_registers, REGISTERS // warps, 255)
            yield config._replace(num_warps=warps, max_registers=limit)
    if config.num_stages > 1:
        for stages in (config.num_stages - 1, config.num_stages + 1):
            yield config._replace(num_stages=stages)


def entry(config: Config) -> str:
    """The entry as it stands in the table."""
    blocks = ", ".join(f'"{name}": {block}' for name, block in config.blocks.items())
    up_to = "1 << 62" if config.up_to == 1 << 62 else config.up_to
    rest = f"num_warps={config.num_warps}"
    rest += f", num_stages={config.num_stages}" if config.num_stages != 1 else ""
    rest += f", max_registers={config.max_registers}" if config.max_registers else ""
    return f"Config({up_to}, {{{blocks}}}, {rest}),"


class Trial:
    """One entry's case: times a configuration in the entry's place, if its results agree."""

    def __init__(self, kernel: str, at: int, device: str = "cuda"):
        from mcr_fast.kernels.config import TABLE

        self.tables, self.kernel, self.at = TABLE, kernel, at
        self.before = self.tables[kernel]
        case, self.mode = case_of(kernel, self.before, at)
        self.inputs = make_inputs(case, device=device)
        ours = benchmarks()[case.op].provider("ours").run
        self.forward = lambda: ours(self.inputs, backend="triton")
        self.expected = self.results()

    def results(self) -> list[torch.Tensor]:
        """The value and the gradients, as they come with the table of now."""
        value = step(self.forward, self.inputs.leaves(), self.mode).run().detach()
        return [value, *(x.grad for x in self.inputs.leaves() if x.grad is not None)]

    def place(self, config: Config) -> None:
        """Put a configuration into the table."""
        table = list(self.before)
        table[self.at] = config
        self.tables[self.kernel] = tuple(table)

    def agrees(self) -> bool:
        """Whether results are those of the entry, but for the order of sums."""
        pairs = zip(self.results(), self.expected, strict=True)
        return all(
            float((a - b).float().norm()) <= 1e-2 * float(b.float().norm()) for a, b in pairs
        )

    def time(self, config: Config, seconds: float) -> float | None:
        """The median in seconds; None if it does not compile, does not fit, or is wrong."""
        self.place(config)
        try:
            if not self.agrees():
                return None
            made = step(self.forward, self.inputs.leaves(), self.mode)
            return time_step(made, seconds).p50
        except Exception as error:  # Triton has many kinds of errors for what does not fit
            print(f"    {entry(config)}  {type(error).__name__}", flush=True)
            return None
        finally:
            self.tables[self.kernel] = self.before


def tune(kernel: str, seconds: float, deadline: float) -> list[Config]:
    """The table of a kernel, better entries in their places."""
    from mcr_fast.kernels.config import TABLE

    chosen = []
    for at, config in enumerate(TABLE[kernel]):
        if monotonic() > deadline:
            chosen.append(config)
            continue
        trial = Trial(kernel, at)
        base = trial.time(config, seconds)
        print(f"  {entry(config)}  {(base or 0) * 1e3:.4g} ms", flush=True)
        best, best_time = config, MARGIN * (base or float("inf"))
        for other in neighbours(config):
            time = trial.time(other, seconds) if monotonic() < deadline else None
            if time is not None:
                print(f"    {entry(other)}  {time * 1e3:.4g} ms", flush=True)
            if time is not None and time < best_time:
                best, best_time = other, time
        chosen.append(best)
    return chosen


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("--kernel", action="append", choices=KERNELS, help="can be repeated")
    parser.add_argument("--seconds", type=float, default=0.1, help="of calls of a configuration")
    parser.add_argument("--budget", type=float, default=540, help="seconds for everything")
    parser.add_argument("--out", type=Path, help="also writes the table there")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Tune, print the table to paste into kernels/config.py; 2 without a GPU."""
    reason = why_not()
    if reason:
        print(f"python -m bench tune: {reason}", file=sys.stderr)
        return 2
    deadline = monotonic() + options.budget
    lines = []
    for kernel in options.kernel or KERNELS:
        print(kernel, flush=True)
        configs = tune(kernel, options.seconds, deadline)
        lines += [f'"{kernel}": (', *(f"    {entry(config)}" for config in configs), "),"]
    text = "\n".join(lines) + "\n"
    print(f"\n# {torch.cuda.get_device_name()}, torch {torch.__version__}\n{text}")
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    return 0
