"""What a run leaves behind: files of results, a plot, and a summary of what is verified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench import results
from bench.goals import TimedRow
from bench.gpu.sanitize import is_sanitized
from bench.gpu.sizes import HEADER, choice, disagreements, markdown, table
from bench.results import ENVIRONMENT, Row


def verification(checked: Sequence[Row], environment: Row) -> list[str]:
    """One line for each op and backend, as docs/gpu-verification.md has them."""
    cases = [row for row in checked if not is_sanitized(row)]
    count = Counter((row["op"], row["backend"], row["passed"]) for row in cases)
    dirty = {"yes": " with changes", "unknown": " (changes unknown)"}.get(environment["dirty"], "")
    where = f"{environment['commit'] or 'unknown'}{dirty} | {environment['device']}"
    lines = []
    for op, backend in dict.fromkeys((row["op"], row["backend"]) for row in checked):
        good, bad, open_ = (count[op, backend, word] for word in ("yes", "no", "not run"))
        watched = [
            row
            for row in checked
            if is_sanitized(row) and (row["op"], row["backend"]) == (op, backend)
        ]
        bad_memory = any(row["passed"] == "no" for row in watched)
        state = "FAILED" if bad or bad_memory else "incomplete" if open_ or not good else "verified"
        lines.append(
            f"| {op} | {backend} | {where} | {environment['date'][:10]} | {state}: "
            f"{good} checks right, {bad} wrong, {open_} not run{_watched(watched)} |"
        )
    return lines


def _watched(rows: Sequence[Row]) -> str:
    """What compute-sanitizer said, tool by tool."""
    words = {"yes": "clean", "no": "ERRORS", "not run": "not run"}
    said = ", ".join(f"{row['checks']} {words[row['passed']]}" for row in rows)
    return f"; compute-sanitizer: {said}" if said else ""


def _by_the_model(row: Row) -> str:
    return f", predicted {row['predicted']}" if row.get("predicted") else ""


def summary(
    checked: Sequence[Row],
    targets: Sequence[Row],
    unable: Sequence[str],
    figures: Sequence[Row],
    environment: Row,
    sizes: str = "",
) -> str:
    """The text of summary.txt.

    `figures`: what has nothing to reach; `sizes`: the table of sizes and what it would choose.
    """
    parts = [
        f"{environment['device']}, {environment['capability']}, torch {environment['torch']}, "
        f"python {environment['python']}, {environment['date']} UTC"
    ]
    if checked:
        header = "| kernel | backend | commit | device | date | |\n|---|---|---|---|---|---|"
        parts.append("\n".join([header, *verification(checked, environment)]))
    for word, title in (("no", "WRONG"), ("not run", "not run")):
        rows = [row for row in checked if row["passed"] == word]
        if rows:
            lines = [
                f"{r['op']}/{r['case']} {r['checks']} ({r['backend']}): {r['detail']}" for r in rows
            ]
            parts.append("\n".join([f"{title}: {len(rows)}", *lines]))
    if figures:
        lines = [
            f"{r['what']}: {r['measured'] or '-'} {r['unit']}{_by_the_model(r)}"
            + (f"  ({r['detail']})" if r["detail"] else "")
            for r in figures
        ]
        parts.append("\n".join(lines))
    if targets:
        lines = [
            f"{r['passed']:<12}  {r['what']}: {r['measured'] or '-'} {r['unit']}, goal {r['goal']}"
            f"{_by_the_model(r)}"
            for r in targets
        ]
        parts.append("\n".join(lines))
    if sizes:
        parts.append(sizes)
    if unable:
        parts.append("\n".join(["ours did not run, or did not finish:", *unable]))
    return "\n\n".join(parts) + "\n"


def write_sizes(path: Path, rows: Sequence[TimedRow], lines: Sequence[Row], stamp: Row) -> str:
    """sizes.csv; the same for the summary, with the choice of backends that it would make."""
    if not rows:
        return ""
    found = table(rows, lines)
    results.write(path, [{**stamp, **row} for row in found], (*HEADER, *ENVIRONMENT))
    chosen, doubt = choice(rows, found), disagreements(rows, found)
    parts = [
        markdown(found),
        chosen and f"mcr_fast/ops/registry.py, by these times:\n{chosen}",
        doubt and f"sizes of one class that do not agree, the faster one by how much:\n{doubt}",
    ]
    return "\n\n".join(filter(None, parts))
