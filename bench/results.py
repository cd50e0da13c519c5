"""Rows of results: `bench/results/<machine>/<op>.csv`."""

import csv
import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from bench.machine import ROOT, machine

RESULTS = ROOT / "bench" / "results"

ENVIRONMENT = (
    *("date", "commit", "dirty", "device", "cores", "threads", "load"),
    *("capability", "mcr_fast", "torch", "python"),
)
KEY = ("op", "case", "mode", "provider")
COLUMNS = (
    *KEY,
    *("dtype", "M", "N", "C", "K", "D", "L", "donors", "start"),
    *("p20_ms", "p50_ms", "p80_ms", "calls"),
    "ratio_to_ours",  # this provider's median over ours of the same run
    "peak_mb",  # above inputs and gradients
    "element_ns",  # per (pair, class) element and core
    "floor_fraction",  # floor over median: 1 cannot be beaten
    "compile_s",
    "skipped",
    *ENVIRONMENT,
)
TARGET_COLUMNS = ("what", "goal", "measured", "unit", "passed", "detail", *ENVIRONMENT)

# providers in tables and plots
NAMES = {
    "ours": "mcr_fast",
    "reference": "reference",
    "eager": "best eager",
    "compile": "torch.compile",
    "released": "released",
    "pml": "pytorch-metric-learning",
}

Row = Mapping[str, str]


def folder(name: str | None = None) -> Path:
    """The results of a machine, this one if none is named."""
    return RESULTS / (name or machine())


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a file; none if there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write(path: Path, rows: Iterable[Row], columns: tuple[str, ...] = COLUMNS) -> None:
    """Write a file anew; one that is stopped leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(".tmp")
    with written.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    written.replace(path)


def write_text(path: Path, text: str) -> None:
    """The same with a text."""
    written = path.with_suffix(".tmp")
    written.write_text(text, encoding="utf-8")
    written.replace(path)


def merge(
    path: Path,
    rows: Iterable[Row],
    columns: tuple[str, ...] = COLUMNS,
    names: tuple[str, ...] = KEY,  # the columns that tell rows apart
) -> None:
    """Rows of the same op, case, mode and provider replace those in the file; others stay."""
    kept = {key(row, names): row for row in read(path)}
    kept.update({key(row, names): row for row in rows})
    write(path, kept.values(), columns)


def key(row: Row, names: tuple[str, ...] = KEY) -> tuple[str, ...]:
    """What names a measurement."""
    return tuple(row.get(column, "") for column in names)


def number(row: Row, column: str) -> float | None:
    """A cell as a number; None if it is empty or the file is older than the column."""
    text = row.get(column) or ""
    return float(text) if text else None


def significant(value: float | None, digits: int = 4) -> str:
    """A number for a cell or a table, to a few digits; tiny ones with an exponent."""
    if value is None:
        return ""
    if not math.isfinite(value) or 0 < abs(value) < 1e-4:
        return f"{value:.{digits}g}"
    rounded = float(f"{value:.{digits}g}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded)))) if rounded else 0
    text = f"{rounded:.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
