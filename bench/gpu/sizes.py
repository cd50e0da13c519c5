"""Which backend is the faster at which size: CUDA C++ and Triton beside torch.compile and eager."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

from bench.gpu.rows import MIPD, Goal, TimedRow, serving
from bench.registry import Case, Provider, benchmarks
from bench.results import Row, number, significant

BACKENDS = ("cuda", "triton")
COLUMNS = ("cuda", "triton", "compile", "eager")  # of the table, in milliseconds
HEADER = ("op", "size", *(f"{name}_ms" for name in COLUMNS), "fastest", "of ours")
CLASSES = (6, 28, 101, 174, 1000)
DIVERGENCES = ("permuted_divergence", "row_divergence")


def _rows() -> Iterator[TimedRow]:
    """A training step of each size, the ones with a goal first."""
    for (n, donors), c in product(((4096, "uniform"), (4096, "cyclic"), (128, "uniform")), CLASSES):
        # Triton pads few classes to a power of two, and gives every row whole warps
        narrow = n == 4096 and donors == "uniform" and c < 128
        goals = (Goal("ours_triton", 1.5, of="ours_cuda"),) if narrow else ()
        case = replace(MIPD, N=n, C=c, donors=donors)
        label = f"MIPD N={n} C={c} K=32 {donors}, CUDA C++"
        yield TimedRow(label, case, goals, quick=n == 128 and c in (6, 174), step_only=True)
    for n, c in product((4096, 128), CLASSES):
        case = Case("row_divergence", N=n, C=c, K=32, M=0)
        quick = n == 128 and c == 174
        yield TimedRow(f"row_divergence N={n} C={c}", case, quick=quick, step_only=True)
    for op, rows in product(("nt_xent", "sup_con"), (64, 512, 4096, 32768)):
        case = Case(op, N=rows // 2, D=512, C=28, dtype="bfloat16")
        yield TimedRow(f"{op} L={rows}", case, quick=rows == 64, step_only=True)
    for n in (32, 512, 4096, 32768):
        case = Case("reconstruction_loss", N=n, D=512)
        yield TimedRow(f"reconstruction_loss N={n}", case, quick=n == 32, step_only=True)


SIZE_ROWS = tuple(_rows())


def size_providers(case: Case) -> list[Provider]:
    """Every backend that has a kernel here, by its name, and plain torch, torch.compile last."""
    benchmark = benchmarks()[case.op]
    ours = benchmark.provider("ours").run
    backends = [name for name in BACKENDS if name in serving(case.op)]
    found = [Provider(f"ours_{name}", partial(ours, backend=name)) for name in backends]
    return [*found, benchmark.provider("eager"), benchmark.provider("compile")]


def table(rows: Sequence[TimedRow], lines: Sequence[Row]) -> list[dict[str, str]]:
    """A row for each size: medians of a step, the fastest of all, and the faster one of ours."""
    times = {
        (line["op"], line["case"], line["provider"]): number(line, "p50_ms")
        for line in lines
        if line["mode"] == "full"
    }
    found = []
    for row in rows:
        key = (row.case.op, row.case.name)
        names = {name: f"ours_{name}" if name in BACKENDS else name for name in COLUMNS}
        measured = {name: times.get((*key, provider)) for name, provider in names.items()}
        known = {name: ms for name, ms in measured.items() if ms}
        ours = {name: ms for name, ms in known.items() if name in BACKENDS}
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


def choice(rows: Sequence[TimedRow], found: Sequence[Row]) -> str:
    """`CHOICE` of mcr_fast/ops/_backend.py as these times have it; empty if none was compared.

    For each number of classes the backend that is faster on the geometric mean over the sizes with
    it; ops without classes have one choice for all their sizes.
    """
    gains: dict[str, dict[int | None, list[float]]] = {}
    for row, line in zip(rows, found, strict=True):
        cuda, triton = number(line, "cuda_ms"), number(line, "triton_ms")
        if cuda and triton:
            classes = row.case.C if row.case.op in DIVERGENCES else None
            gains.setdefault(row.case.op, {}).setdefault(classes, []).append(
                math.log(triton / cuda)
            )
    lines = []
    for op, by_classes in gains.items():
        faster = [
            (classes, ("cuda", "triton") if sum(by_classes[classes]) > 0 else ("triton", "cuda"))
            for classes in sorted(by_classes, key=lambda c: c or 0)
        ]
        # up to the last size of those that agree, and beyond the largest as there
        ends = [
            (classes, order)
            for (classes, order), (_, after) in zip(faster, faster[1:], strict=False)
            if order != after
        ]
        lines.append(f'    "{op}": {(*ends, (None, faster[-1][1]))!r},'.replace("'", '"'))
    return "\n".join(["CHOICE = {", *lines, "}"]) if lines else ""
