"""Runs the items of tests/suite on the GPU, many processes at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from bench.gpu.processes import last_words, python, run_group, run_items
from bench.results import Row

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

    @property
    def key(self) -> tuple[str, ...]:
        """What names its row."""
        return (self.op, self.backend, self.case, self.check)

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
    folder: Path,
    workers: int,
    deadline: float,
    note: Callable[[list[dict[str, str]]], None],
) -> None:
    """Runs items of all backends beside each other, and notes a row for each when it ends."""
    named = {item.nodeid: item for item in items}

    def tell(results: dict[str, dict]) -> None:
        note(
            [
                named[nodeid].row(line["outcome"], line.get("message") or "", line.get("seconds"))
                for nodeid, line in results.items()
                if line["outcome"] != "skipped"
            ]
        )

    folder.mkdir()
    run_items(in_turns(items), command, folder, workers, deadline, tell)


def in_turns(items: Iterable[Item]) -> list[list[str]]:
    """The items of each case, for whoever compiles its kernels runs all of its checks.

    Each op and backend gets as far as the others: where the time ends, none is left out.
    """
    order: list[tuple[float, list[str]]] = []
    for _, group in groupby(items, key=lambda item: item[1:3]):
        cases = [[item.nodeid for item in case] for _, case in groupby(group, lambda i: i[1:4])]
        order += [((at + 0.5) / len(cases), case) for at, case in enumerate(cases)]
    return [case for _, case in sorted(order, key=lambda placed: placed[0])]


def without_items(rows: Iterable[Row], expected: Iterable[tuple[str, str]]) -> list[Row]:
    """A row for each (op, backend) of which nothing ran."""
    done = {(row["op"], row["backend"]) for row in rows}
    why = f"no item of {SUITE} ran"
    return [all_of(*pair).row("not run", why) for pair in expected if pair not in done]


def command(results: Path, nodeids: Collection[str]) -> list[str]:
    """What runs some items; its log says which of them is running, and a crash's last words."""
    chosen = results.with_suffix(".items")
    chosen.write_text("\n".join(nodeids), encoding="utf-8")
    options = ("--slow", "-v", "-s", "-p", "no:faulthandler", "-p", "bench.gpu.lost_device")
    return pytest_command(f"@{chosen}", "--results", results, *options)
