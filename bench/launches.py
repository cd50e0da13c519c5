"""What a step starts on a GPU, counted without one: `python -m bench launches`.

`tests/launches.py` counts, in a process for each backend: Triton's kernels at its interpreter, the
CUDA library's on the emulator, torch's own by their names.
"""

import argparse
import json
import os
import subprocess
import sys

from tabulate import tabulate

from bench.host_time import C, D, N, host_time
from bench.machine import ROOT
from bench.registry import STEMS

# the environment of the process that counts
BACKENDS = {
    "triton": {"TRITON_INTERPRET": "1"},
    "cuda": {"MCR_FAST_EMULATED": "1"},
    "eager": {},
}
PARTS = {
    "forward": "forward",
    "forward_with_gradient": "with gradient",
    "backward": "backward",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `python -m bench launches`."""
    several = "can be repeated; all if left out"
    parser.add_argument("--backend", action="append", choices=BACKENDS, help=several)
    parser.add_argument("--op", action="append", choices=STEMS, help=several)
    parser.add_argument("-v", "--verbose", action="store_true", help="name what is launched")
    parser.set_defaults(command=command)


def counted(backend: str, ops: list[str]) -> tuple[list[dict], str | None]:
    """The rows of a backend, and what kept it from counting more."""
    foreign = {name for variables in BACKENDS.values() for name in variables}
    environment = {name: value for name, value in os.environ.items() if name not in foreign}
    done = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "launches.py"), backend, *ops],
        env=environment | BACKENDS[backend],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    last_words = done.stderr.strip().splitlines()[-1:]
    return rows, (" ".join(last_words) or "it ended") if done.returncode else None


def table(rows: list[dict]) -> str:
    """A line for each row; a step is a forward with its gradient, and a backward."""
    lines = []
    for row in rows:
        numbers = [row.get("skipped", "")]
        if "skipped" not in row:
            numbers = [sum(row[part].values()) for part in PARTS]
            numbers.append(numbers[1] + numbers[2])
        lines.append([row["op"], row["case"], row["backend"], *numbers])
    return tabulate(lines, ["op", "case", "backend", *PARTS.values(), "step"])


def names(rows: list[dict]) -> str:
    """What each row launches, the most frequent first."""
    lines = []
    for row in rows:
        for part in PARTS:
            found = sorted(row.get(part, {}).items(), key=lambda item: (-item[1], item[0]))
            words = ", ".join(f"{count} {name}" for name, count in found)
            lines.append(f"{row['op']} {row['case']} {row['backend']} {part}: {words}")
    return "\n".join(lines)


def host_table() -> str:
    """The time of a step on next to no data, and its ratio to a bare one."""
    times = host_time()
    bare = times["linear and sum"]
    lines = [
        [name, *(1e6 * s for s in own), *(s / b for s, b in zip(own, bare, strict=True))]
        for name, own in times.items()
    ]
    head = [f"host time, N={N} D={D} C={C}", "least us", "median us", "ratio", "of medians"]
    return tabulate(lines, head, floatfmt=("", ".0f", ".0f", ".2f", ".2f"))


def command(options: argparse.Namespace) -> int:
    """Count and print; 1 if nothing could be counted."""
    rows: list[dict] = []
    for backend in options.backend or BACKENDS:
        found, problem = counted(backend, options.op or [])
        rows += found
        if problem:
            print(f"{backend}: {problem}", file=sys.stderr)
    print(table(rows))
    if options.verbose:
        print("\n" + names(rows))
    if not options.op or "mcr_loss" in options.op:
        print("\n" + host_table())
    return 0 if rows else 1
