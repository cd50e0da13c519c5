"""What a run leaves behind: files of results, a plot, and a summary of what is verified."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench import results
from bench.gpu_rates import Rates
from bench.gpu.rows import TimedRow
from bench.gpu.sanitize import is_sanitized
from bench.results import ENVIRONMENT, Row, number, significant

CHECK_COLUMNS = (
    *("op", "backend", "case", "checks", "passed", "detail", "seconds"),
    *ENVIRONMENT,
)


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
            f"{good} cases right, {bad} wrong, {open_} not run{_watched(watched)} |"
        )
    return lines


def _watched(rows: Sequence[Row]) -> str:
    """What compute-sanitizer said, tool by tool."""
    words = {"yes": "clean", "no": "ERRORS", "not run": "not run"}
    said = ", ".join(f"{row['checks']} {words[row['passed']]}" for row in rows)
    return f"; compute-sanitizer: {said}" if said else ""


def summary(
    checked: Sequence[Row],
    targets: Sequence[Row],
    unable: Sequence[str],
    rates: Rates | None,
    environment: Row,
    sizes: str = "",
) -> str:
    """The text of summary.txt; `sizes`: the table of sizes and what it would choose."""
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
            lines = [f"{r['op']}/{r['case']} ({r['backend']}): {r['detail']}" for r in rows]
            parts.append("\n".join([f"{title}: {len(rows)}", *lines]))
    if rates:
        parts.append(
            f"copy {rates.copy / 1e12:.2f} TB/s (read and written), gather from the L2 cache "
            f"{rates.gather / 1e12:.2f} TB/s, bfloat16 product {rates.bfloat16 / 1e12:.0f} TFLOP/s"
        )
    if targets:
        lines = [
            f"{r['passed']:<12}  {r['what']}: {r['measured'] or '-'} {r['unit']}, goal {r['goal']}"
            for r in targets
        ]
        parts.append("\n".join(lines))
    if sizes:
        parts.append(sizes)
    if unable:
        parts.append("\n".join(["ours did not run, or did not finish:", *unable]))
    return "\n\n".join(parts) + "\n"


def write_checks(path: Path, checked: Sequence[Row], environment: Row) -> None:
    """correctness.csv."""
    results.write(path, [{**environment, **row} for row in checked], CHECK_COLUMNS)


def plot(path: Path, rows: Sequence[TimedRow], lines: Sequence[Row], rates: Rates | None) -> None:
    """Every row's times, forward and backward, as bars with the goal as a line."""
    from matplotlib import pyplot

    from bench.plots import LABELS, STYLES

    shown = [row for row in rows if _bars(row, lines)]
    if not shown:
        return
    figure, areas = pyplot.subplots(
        len(shown), 1, figsize=(9, 0.5 + 1.45 * len(shown)), squeeze=False
    )
    for area, row in zip(areas[:, 0], shown, strict=True):
        bars = _bars(row, lines)
        names = [LABELS.get(name, name) for name, _ in bars]
        colours = [STYLES.get(name, STYLES["ours"])[0] for name, _ in bars]
        drawn = area.barh(names, [ms for _, ms in bars], color=colours)
        area.bar_label(drawn, [f"{significant(ms, 3)} ms" for _, ms in bars], padding=3, fontsize=8)
        for goal in row.goals:
            if goal.against == "ms":
                area.axvline(goal.value, color="black", linestyle="--", linewidth=1)
        area.set_xscale("log")
        area.margins(x=0.2)
        area.invert_yaxis()
        area.tick_params(labelsize=8)
        area.set_title(row.label, fontsize=9, loc="left")
    last = max(lines, key=lambda line: line["date"])
    title = f"forward + backward, dashed: goal\n{last['device']}, torch {last['torch']}, "
    figure.suptitle(f"{title}commit {last['commit']}, {last['date'][:10]}", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _bars(row: TimedRow, lines: Sequence[Row]) -> list[tuple[str, float]]:
    """(provider, milliseconds) of a row, from a graph where it is replayed from one."""
    mode = row.modes[-1] if row.graph else row.modes[0]
    found = [
        (line["provider"], number(line, "p50_ms"))
        for line in lines
        if (line["op"], line["case"], line["mode"]) == (row.case.op, row.case.name, mode)
    ]
    return [(name, ms) for name, ms in found if ms]
