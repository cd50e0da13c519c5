"""Machine code as nvdisasm prints it: instructions, branches, and the ways around a loop."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import chain, product
from pathlib import Path


@dataclass(frozen=True)
class Code:
    """One kernel's instructions, and the branches among them as (from, to)."""

    rows: list[str]
    branches: list[tuple[int, int]]

    def loops(self) -> list[list[str]]:
        """The instructions from a backward branch's target to the branch; `BRA .` is no loop."""
        return [self.rows[to : at + 1] for at, to in self.branches if to < at]

    def way_around(self, marks: Mapping[str, int]) -> list[str]:
        """The shortest way around a loop with so many instructions of each name; [] without one.

        So it passes no special case that does not have to be. Names are regular expressions.
        """
        blocks = self._blocks()
        has = [[sum(bool(re.search(m, row)) for row in b.rows) for m in marks] for b in blocks]
        ways = [_from(blocks, at) for at in range(len(blocks))]
        best: list[int] = []
        wanted = [[at for at, counts in enumerate(has) if counts[m]] for m in range(len(marks))]
        # the first mark's can stand in two blocks that need not follow one another
        for stops in chain(product(*wanted), product(wanted[0], *wanted)):
            way = _through(ways, stops)
            enough = all(
                sum(has[at][m] for at in {*way}) >= least for m, least in enumerate(marks.values())
            )
            length = sum(len(blocks[at].rows) for at in way)
            if way and enough and (not best or length < sum(len(blocks[b].rows) for b in best)):
                best = way
        return [row for at in best for row in blocks[at].rows]

    def _blocks(self) -> list[Block]:
        """Stretches of instructions with one way in and one out, each with those that follow."""
        ends = {at + 1 for at, row in enumerate(self.rows) if re.search(r"\b(BRA|EXIT|RET)\b", row)}
        starts = sorted({0, *(to for _, to in self.branches), *ends} - {len(self.rows)})
        numbers = {start: n for n, start in enumerate(starts)}
        targets = dict(self.branches)
        found = []
        for start, end in zip(starts, [*starts[1:], len(self.rows)], strict=True):
            follows = [targets[end - 1]] if end - 1 in targets else []
            if not re.match(r"(BRA|EXIT|RET)", self.rows[end - 1]) and end < len(self.rows):
                follows.append(end)
            found.append(Block(self.rows[start:end], [numbers[to] for to in follows]))
        return found


@dataclass(frozen=True)
class Block:
    """Instructions that run one after the other, and the blocks that can come next."""

    rows: list[str]
    follows: list[int]


def _from(blocks: list[Block], start: int) -> dict[int, list[int]]:
    """The shortest way from a block to each one, itself too: the blocks after it, and that one."""
    found: dict[int, list[int]] = {}
    heap: list[tuple[int, list[int]]] = [(0, [])]
    while heap:
        length, way = heappop(heap)
        at = way[-1] if way else start
        if way and at in found:
            continue
        if way:
            found[at] = way
        for to in blocks[at].follows:
            if to not in found:
                heappush(heap, (length + len(blocks[to].rows), [*way, to]))
    return found


def _through(ways: list[dict[int, list[int]]], stops: Sequence[int]) -> list[int]:
    """The blocks of the shortest way around through these in this order; [] if there is none."""
    way: list[int] = []
    stops = [stop for at, stop in enumerate(stops) if stop not in stops[:at]]
    for at, to in zip(stops, [*stops[1:], stops[0]], strict=True):
        if to not in ways[at]:
            return []
        way += ways[at][to]
    return way


def parse(text: str) -> dict[str, Code]:
    """Every kernel of a disassembly by its mangled name."""
    found: dict[str, Code] = {}
    for part in re.split(r"^\s*\.section\s+\.text\.", text, flags=re.MULTILINE)[1:]:
        name = re.match(r"[\w$.]+", part)
        assert name is not None, part[:80]
        found[name[0]] = _code(part)
    return found


def _code(text: str) -> Code:
    rows: list[str] = []
    labels: dict[str, int] = {}
    for line in text.splitlines():
        if label := re.match(r"(\.L_\S+):", line.strip()):
            labels[label[1]] = len(rows)
        elif instruction := re.search(r"/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            rows.append(instruction[1].strip())
    branches = []
    for at, row in enumerate(rows):
        target = re.search(r"BRA.*?`\((\.L_\S+?)\)", row)
        if target:
            branches.append((at, labels[target[1]]))
    return Code(rows, branches)


def disassemble(cubin: Path, nvdisasm: Path) -> Mapping[str, Code]:
    """The kernels of a cubin."""
    command = [str(nvdisasm), "--print-code", str(cubin)]
    return parse(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
