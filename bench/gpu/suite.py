"""Runs the items of tests/suite on the GPU, many processes at a time."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from time import monotonic

from bench.gpu.processes import last_words, python, run_group, run_items

SUITE = "tests/suite"
BACKENDS = ("triton", "cuda")
COLLECT_SECONDS = 120
PASSED = {"passed": "yes", "failed": "no", "not run": "not run"}


@dataclass(frozen=True)
class Item:
    """One check of one case on one backend, by the name that pytest gives it."""

    nodeid: str  # file::test[backend-op-case-check]

    @property
    def parts(self) -> tuple[str, str, str, str]:
        """Backend, op, case and check; empty if it is not named so."""
        found = re.search(r"\[(\w+)-(\w+)-(.+)-(\w+)\]$", self.nodeid)
        return found.groups() if found else ("", "", "", "")

    @property
    def backend(self) -> str:
        return self.parts[0]

    @property
    def op(self) -> str:
        return self.parts[1]

    @property
    def case(self) -> str:
        return self.parts[2]

    @property
    def check(self) -> str:
        return self.parts[3]

    def row(self, outcome: str, message: str = "", seconds: float | None = None) -> dict[str, str]:
        """As it stands in correctness.csv."""
        named = {"op": self.op, "backend": self.backend, "case": self.case, "checks": self.check}
        time = "" if seconds is None else f"{seconds:.1f}"
        detail = " ".join(message.split())[-600:]
        return {**named, "passed": PASSED[outcome], "detail": detail, "seconds": time}


def all_of(op: str, backend: str) -> Item:
    """Stands for an op's items where there are none."""
    return Item(f"[{backend}-{op}-all-all]")


def pytest_command(*arguments: object) -> list[str]:
    """The suite on this GPU, or the items named."""
    return python("pytest", "--device", "cuda", "-p", "no:cacheprovider", *arguments)


def collect(*, slow: bool) -> list[Item]:
    """Every item for a GPU, those of one case together; without `slow` the quick ones."""
    command = pytest_command(SUITE, "--collect-only", "-q", *(["--slow"] if slow else []))
    output, code = run_group(command, COLLECT_SECONDS)
    if code != 0:
        raise RuntimeError(f"{SUITE} cannot be collected, code {code}: {last_words(output)}")
    found = [Item(line) for line in output.splitlines() if "::" in line]
    return sorted((item for item in found if item.backend in BACKENDS), key=lambda i: i.parts)


def check(
    items: Sequence[Item],
    expected: Iterable[tuple[str, str]],  # (op, backend)
    folder: Path,
    workers: int,
    deadline: float,
) -> list[dict[str, str]]:
    """A row for every item, one backend after the other, and for what has no item."""
    rows = []
    for at, backend in enumerate(BACKENDS):
        there = folder / backend
        there.mkdir()
        # whoever compiles a case's kernels runs all of its checks
        cases = groupby((i for i in items if i.backend == backend), key=lambda i: i.parts[:3])
        groups = [[item.nodeid for item in group] for _, group in cases]
        left = deadline - monotonic()
        end = monotonic() + left / (len(BACKENDS) - at)
        for nodeid, line in run_items(groups, command, there, workers, end).items():
            if line["outcome"] != "skipped":
                seconds = line.get("seconds")
                rows.append(Item(nodeid).row(line["outcome"], line.get("message") or "", seconds))
        good, all_ = (
            sum(row["backend"] == backend and row["passed"] in kinds for row in rows)
            for kinds in (("yes",), PASSED.values())
        )
        print(f"{backend}: {good} checks right, {all_ - good} wrong or not run", flush=True)
    done = {(row["op"], row["backend"]) for row in rows}
    for op, backend in expected:
        if (op, backend) not in done:
            rows.append(all_of(op, backend).row("not run", f"no item of {SUITE} ran"))
    return rows


def command(results: Path, nodeids: Collection[str]) -> list[str]:
    """What runs some items; its log says which of them is running, and a crash's last words."""
    chosen = results.with_suffix(".items")
    chosen.write_text("\n".join(nodeids), encoding="utf-8")
    plugins = ("-p", "no:faulthandler", "-p", "bench.gpu.lost_device")
    return pytest_command(f"@{chosen}", "--slow", "-v", "-s", "--results", results, *plugins)
