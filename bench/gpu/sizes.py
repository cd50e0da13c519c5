"""Which backend is the faster at which size: CUDA C++ and Triton beside torch.compile and eager."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, product

from bench.case import Case
from bench.goals import Goal, TimedRow
from bench.gpu.rows import ACCELERATED, MIPD
from bench.results import Row, number, significant

COLUMNS = (*ACCELERATED, "compile", "eager")  # of the table, in milliseconds
HEADER = ("op", "size", *(f"{name}_ms" for name in COLUMNS), "fastest", "of ours")
CLASSES = (6, 28, 101, 174, 1000)
CONTRASTIVE = ("nt_xent", "sup_con")
CONTRASTIVE_ROWS = (64, 512, 1024, 4096, 32768)


def _rows() -> Iterator[TimedRow]:
    """A training step of each size, the ones with a goal first."""
    for (n, donors), c in product(((4096, "uniform"), (4096, "cyclic"), (128, "cyclic")), CLASSES):
        # Triton pads few classes to a power of two, and gives every row whole warps
        narrow = n == 4096 and donors == "cyclic" and c < 128
        goals = (Goal("ours_triton", 1.5, of="ours_cuda"),) if narrow else ()
        case = replace(MIPD, N=n, C=c, donors=donors)
        label = f"MIPD N={n} C={c} K=32 {donors}"
        yield TimedRow(label, case, goals, quick=n == 128 and c in (6, 174), step_only=True)
    for n, c in product((4096, 128), CLASSES):
        case = Case("row_divergence", N=n, C=c, K=32, M=0)
        quick = n == 128 and c == 174
        yield TimedRow(f"row_divergence N={n} C={c}", case, quick=quick, step_only=True)
    # in float32 other products are made on either side, so that the other one may be the faster
    for op, dtype, rows in product(CONTRASTIVE, ("float32", "bfloat16"), CONTRASTIVE_ROWS):
        case = Case(op, N=rows // 2, D=512, C=28, dtype=dtype)
        yield TimedRow(f"{op} L={rows} {dtype}", case, quick=rows == 64, step_only=True)
    for n in (32, 512, 4096, 32768):
        case = Case("reconstruction_loss", N=n, D=512)
        yield TimedRow(f"reconstruction_loss N={n}", case, quick=n == 32, step_only=True)


SIZE_ROWS = tuple(_rows())


def table(rows: Sequence[TimedRow], lines: Sequence[Row]) -> list[dict[str, str]]:
    """A row for each size: medians of a step, the fastest of all, and the faster one of ours."""
    times = {
        (line["op"], line["case"], line["provider"]): number(line, "p50_ms")
        for line in lines
        if line["mode"] == "full"
    }
    found = []
    for row in rows:
        measured = {
            name: times.get((row.case.op, row.case.name, "ours_" * (name in ACCELERATED) + name))
            for name in COLUMNS
        }
        known = {name: ms for name, ms in measured.items() if ms}
        ours = {name: ms for name, ms in known.items() if name in ACCELERATED}
        found.append(
            {
                "op": row.case.op,
                "size": row.case.name,
                **{f"{name}_ms": significant(ms, 3) for name, ms in measured.items()},
                "fastest": min(known, key=known.__getitem__) if known else "not run",
                # one alone has won nothing
                "of ours": min(ours, key=ours.__getitem__) if len(ours) > 1 else "",
            }
        )
    return found


def markdown(found: Sequence[Row]) -> str:
    """The table as text; what was not measured is a dash."""
    lines = [
        "| op | size | " + " | ".join(f"{name}, ms" for name in COLUMNS) + " | fastest | of ours |",
        "|---" * len(HEADER) + "|",
    ]
    lines += ["| " + " | ".join(row[name] or "-" for name in HEADER) + " |" for row in found]
    return "\n".join(lines)


def size_of(case: Case) -> tuple[str, int]:
    """What `CHOICE` counts of a case, in letters and how many."""
    return ("L", case.L) if case.op in CONTRASTIVE else ("C", case.C)


@dataclass(frozen=True)
class SizeClass:
    """The sizes that `CHOICE` cannot tell apart."""

    key: str  # of CHOICE
    letters: str  # what is counted
    size: int
    ratios: dict[str, float]  # name of a case -> time of Triton's step over that of CUDA C++

    @property
    def order(self) -> tuple[str, str]:
        """The backends, the one first that is faster on the geometric mean."""
        cuda_first = sum(map(math.log, self.ratios.values())) > 0
        return ("cuda", "triton") if cuda_first else ("triton", "cuda")

    @property
    def disagrees(self) -> bool:
        """Whether the other backend is the faster at some of them."""
        return min(self.ratios.values()) < 1 < max(self.ratios.values())


def classes_of(rows: Sequence[TimedRow], found: Sequence[Row]) -> list[SizeClass]:
    """What both of ours were timed for, smallest first within a key of `CHOICE`."""
    classes: dict[tuple[str, str, int], dict[str, float]] = {}
    for row, line in zip(rows, found, strict=True):
        cuda, triton = number(line, "cuda_ms"), number(line, "triton_ms")
        if cuda and triton:
            key = row.case.op + " 16-bit" * (row.case.torch_dtype.itemsize == 2)
            ratios = classes.setdefault((key, *size_of(row.case)), {})
            ratios[row.case.name] = triton / cuda
    keys = [key for key, _, _ in classes]
    order = sorted(classes, key=lambda named: (keys.index(named[0]), named[2]))
    return [SizeClass(*named, classes[named]) for named in order]


def choice(rows: Sequence[TimedRow], found: Sequence[Row]) -> str:
    """`CHOICE` of mcr_fast/ops/registry.py as these times have it; empty if none was compared.

    For each size class the backend that is faster on the geometric mean over the sizes in it.
    """
    orders: dict[str, tuple] = {}
    for key, group in groupby(classes_of(rows, found), key=lambda each: each.key):
        each = list(group)
        # up to the last size of those that agree, and beyond the largest as there
        ends = [
            (this.size, this.order)
            for this, after in zip(each, each[1:], strict=False)
            if this.order != after.order
        ]
        orders[key] = (*ends, (None, each[-1].order))
    lines = [
        f'    "{key}": {order!r},'.replace("'", '"')
        for key, order in orders.items()
        # 16 bits have a row where they choose otherwise
        if key == (op := key.removesuffix(" 16-bit")) or order != orders.get(op)
    ]
    return "\n".join(["CHOICE = {", *lines, "}"]) if lines else ""


def disagreements(rows: Sequence[TimedRow], found: Sequence[Row]) -> str:
    """Each size of the classes in which not all have the same winner; empty if there is none."""
    return "\n".join(
        f"{each.key} {each.letters}={each.size}, {each.order[0]} in CHOICE: "
        + ", ".join(
            f"{name} {'cuda' if ratio > 1 else 'triton'} {max(ratio, 1 / ratio):.2f}x"
            for name, ratio in each.ratios.items()
        )
        for each in classes_of(rows, found)
        if each.disagrees
    )
