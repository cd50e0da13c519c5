"""Compares two files of results."""

from pathlib import Path

from tabulate import tabulate

from bench.results import key, number, read, significant


def compare(before: Path, after: Path, threshold: float, provider: str) -> tuple[str, bool]:
    """(a table of what changed, whether anything of the provider got slower than the threshold).

    Rows are matched by op, case, mode and provider; the ratio is the time after over before.
    """
    old = {key(row): row for row in read(before) if row["provider"] == provider}
    new = {key(row): row for row in read(after) if row["provider"] == provider}
    changes = []
    for name in old.keys() & new.keys():
        was, now = number(old[name], "p50_ms"), number(new[name], "p50_ms")
        if was and now:
            changes.append((now / was, name, was, now))
    if not changes:
        return f"no measurement of {provider!r} is in both files", False
    changes.sort(reverse=True)
    lines = []
    for ratio, (*name, _), was, now in changes:
        verdict = "slower" if ratio > threshold else "faster" if ratio < 1 / threshold else ""
        lines.append((*name, significant(was), significant(now), f"{ratio:.2f}", verdict))
    table = tabulate(lines, ["op", "case", "mode", "before ms", "after ms", "ratio", ""])
    notes = []
    for column in ("device", "threads", "capability", "torch"):
        was, now = (sorted({row[column] for row in rows.values()}) for rows in (old, new))
        if was != now:
            notes.append(f"not alike: {column} {was} and {now}")
    missing = len(old.keys() ^ new.keys())
    if missing:
        notes.append(f"{missing} measurements are in one file only")
    return "\n".join([table, *notes]), changes[0][0] > threshold
