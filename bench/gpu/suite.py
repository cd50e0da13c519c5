"""Runs the items of tests/suite on the GPU, many processes at a time."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from time import monotonic
from typing import NamedTuple

from bench.gpu.processes import last_words, python, run_group, run_items

SUITE = "tests/suite"
BACKENDS = ("triton", "cuda")
COLLECT_SECONDS = 120
PASSED = {"passed": "yes", "failed": "no", "not run": "not run"}


class Item(NamedTuple):
    """One check of one case on one backend."""

    nodeid: str  # as pytest names it: file::test[backend-op-case-check]
    backend: str
    op: str
    case: str
    check: str

    @staticmethod
    def named(nodeid: str) -> Item:
        """The item of that name; what is not named so has no backend."""
        found = re.search(r"\[(\w+)-(\w+)-(.+)-(\w+)\]$", nodeid)
        return Item(nodeid, *(found.groups() if found else [""] * 4))

    def row(self, outcome: str, message: str = "", seconds: float | None = None) -> dict[str, str]:
        """As it stands in correctness.csv."""
        named = {"op": self.op, "backend": self.backend, "case": self.case, "checks": self.check}
        time = "" if seconds is None else f"{seconds:.1f}"
        detail = " ".join(message.split())[-600:]
        return {**named, "passed": PASSED[outcome], "detail": detail, "seconds": time}


def all_of(op: str, backend: str) -> Item:
    """Stands for an op's items where there are none."""
    return Item("", backend, op, "all", "all")


def pytest_command(*arguments: object) -> list[str]:
    """The suite on this GPU, or the items named."""
    return python("pytest", "--device", "cuda", "-p", "no:cacheprovider", *arguments)


def collect(*, slow: bool) -> list[Item]:
    """Every item for a GPU, those of one case together; without `slow` the quick ones."""
    command = pytest_command(SUITE, "--collect-only", "-q", *(["--slow"] if slow else []))
    output, code = run_group(command, COLLECT_SECONDS)
    if code != 0:
        raise RuntimeError(f"{SUITE} cannot be collected, code {code}: {last_words(output)}")
    found = [Item.named(line) for line in output.splitlines() if "::" in line]
    return sorted((item for item in found if item.backend in BACKENDS), key=lambda i: i[1:])


def check(
    items: Sequence[Item],
    expected: Iterable[tuple[str, str]],  # (op, backend)
    folder: Path,
    workers: int,
    deadline: float,
) -> list[dict[str, str]]:
    """A row for every item, one backend after the other, and for what has no item."""
    rows: list[dict[str, str]] = []
    backends = [name for name in BACKENDS if any(item.backend == name for item in items)]
    for at, backend in enumerate(backends):
        there = folder / backend
        there.mkdir()
        # whoever compiles a case's kernels runs all of its checks
        cases = groupby((i for i in items if i.backend == backend), key=lambda i: i[1:4])
        groups = [[item.nodeid for item in group] for _, group in cases]
        end = monotonic() + (deadline - monotonic()) / (len(backends) - at)
        found = [
            Item.named(nodeid).row(line["outcome"], line.get("message") or "", line.get("seconds"))
            for nodeid, line in run_items(groups, command, there, workers, end).items()
            if line["outcome"] != "skipped"
        ]
        good = sum(row["passed"] == "yes" for row in found)
        print(f"{backend}: {good} checks right, {len(found) - good} wrong or not run", flush=True)
        rows += found
    done = {(row["op"], row["backend"]) for row in rows}
    for op, backend in expected:
        if (op, backend) not in done:
            rows.append(all_of(op, backend).row("not run", f"no item of {SUITE} ran"))
    return rows


def command(results: Path, nodeids: Collection[str]) -> list[str]:
    """What runs some items; its log says which of them is running, and a crash's last words."""
    chosen = results.with_suffix(".items")
    chosen.write_text("\n".join(nodeids), encoding="utf-8")
    options = ("--slow", "-v", "-s", "-p", "no:faulthandler", "-p", "bench.gpu.lost_device")
    return pytest_command(f"@{chosen}", "--results", results, *options)
