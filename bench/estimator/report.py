"""Results of the draws as tables of docs/estimator.md."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from bench.estimator import training
from bench.results import RESULTS, Row, number, read, significant

# of no machine: most of it is the same on all of them, and the rows name theirs
FOLDER = RESULTS / "estimator"
FILES = {"draws": "draws.csv", "step": "step.csv", "cost": "cost.csv", "training": "training.csv"}
# What a draw is and what is measured of it, as the tables and the figure read it from each file.
OF_DRAWS = (
    *("scheme", "donors", "bias", "bias_error", "value_variance", "value_predicted"),
    *("latents_error", "encoders_error", "encoders_cosine", "encoders_variance"),
)
OF_STEPS = ("encoders_cosine", "encoders_variance", "step_variance")
WHOLE = "MCRLoss"  # the term that is all of the regularizer
Table = tuple[list[tuple[str, ...]], tuple[str, ...], list[Row]]  # lines, header, rows used
Cell = Callable[[Row], str]


def _percent(column: str, digits: int = 2) -> Cell:
    return lambda row: significant(100 * float(row[column]), digits)


def _bias(row: Row) -> str:
    if float(row["bias_error"]) < 5e-7:  # all pairs: the same number but for roundings
        return "0"
    return f"{100 * float(row['bias']):+.2f} ± {100 * float(row['bias_error']):.2f}"


def _pivot(
    rows: Sequence[Row], lines: Iterable[dict[str, str]], columns: dict[str, dict[str, str]]
) -> Iterable[list[Row | None]]:
    """For each line the row of every column; None where there is none."""
    for line in lines:
        wanted = [{**line, **column} for column in columns.values()]
        yield [
            next((row for row in rows if all(row[k] == v for k, v in want.items())), None)
            for want in wanted
        ]


def _drawn(folder: Path, num_modalities: str = "2") -> list[dict[str, str]]:
    return [row for row in read(folder / FILES["draws"]) if row["M"] == num_modalities]


def _by_size(
    rows: list[dict[str, str]],
    stages: Iterable[str],
    columns: dict[str, dict[str, str]],
    cells: Iterable[Cell],
) -> list[tuple[str, ...]]:
    """A line for each stage and N: the columns for each cell in turn."""
    sizes = list(dict.fromkeys(row["N"] for row in rows))
    lines = [{"steps": s, "N": n} for s in stages for n in sizes]
    table = []
    for line, found in zip(lines, _pivot(rows, lines, columns), strict=True):
        values = [cell(row) if row else "" for cell in cells for row in found]
        table.append((line["steps"], line["N"], *values))
    return table


def _stages(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row["steps"] for row in rows))


def bias(folder: Path) -> Table:
    """Of the value, in percent, beside what the formulas say."""
    rows = _drawn(folder)
    columns = {
        f"{scheme} {k}": {"scheme": scheme, "K": k}
        for scheme in ("cyclic", "uniform")
        for k in ("1", "8", "32")
    }
    lines = [
        (*line, f"{-100 / int(line[1]):.2f}")
        for line in _by_size(rows, _stages(rows)[-1:], columns, [_bias])
    ]
    header = ("steps", "N", *(f"{name}, %" for name in columns), "-1 / N, %")
    return lines, header, rows


def value(folder: Path) -> Table:
    """Sampling variance of the value in percent of that between batches."""
    rows = _drawn(folder)
    counts = ("1", "4", "8", "16", "32", "64")
    lines = _by_size(
        rows, _stages(rows), {k: {"scheme": "cyclic", "K": k} for k in counts}, [_of_value]
    )
    uniform = _by_size(
        rows, _stages(rows), {"32": {"scheme": "uniform", "K": "32"}}, [_percent("value_predicted")]
    )
    joined = [
        (*line, more[2], _error_of_variance(rows, line[1]))
        for line, more in zip(lines, uniform, strict=True)
    ]
    names = (f"K = {k}" for k in counts)
    return joined, ("steps", "N", *names, "uniform, K = 32", "error"), rows


def _error_of_variance(rows: Sequence[Row], n: str) -> str:
    """Relative standard error of the variance between so many batches of a normal variable."""
    batches = next(int(row["between"]) for row in rows if row["N"] == n)
    return f"± {100 * (2 / (batches - 1)) ** 0.5:.0f} %"


def _of_value(row: Row) -> str:
    if float(row["value_predicted"]) < 1e-9:
        return "0"
    measured, predicted = (_percent(x)(row) for x in ("value_variance", "value_predicted"))
    return f"{predicted} ({measured})"


GRADIENT_COUNTS = ("1", "8", "32")


def gradient(folder: Path) -> Table:
    """What the draw does to the gradient of cyclic donors."""
    rows = _drawn(folder)
    columns = {k: {"scheme": "cyclic", "K": k} for k in GRADIENT_COUNTS}
    cells = {
        "latents": _percent("latents_error"),
        "encoders": _percent("encoders_error"),
        "of the noise": _percent("encoders_variance"),
    }
    header = [f"{name}, K = {k}" for name in cells for k in columns]
    return _by_size(rows, _stages(rows), columns, cells.values()), ("steps", "N", *header), rows


def step(folder: Path) -> Table:
    """Cosines with the exact gradient, and the draw's share in the noise of a whole step."""
    rows = read(folder / FILES["step"])
    cells: dict[str, Cell] = {
        "cosine": lambda row: f"{float(row['encoders_cosine']):.3f}",
        "of L_MIPD's noise, %": _percent("encoders_variance"),
        "of a step's noise": lambda row: _millionths(row["step_variance"]),
    }
    lines = [(r["steps"], r["N"], r["K"], *(cell(r) for cell in cells.values())) for r in rows]
    return lines, ("steps", "N", "K", *cells), rows


def _millionths(share: str) -> str:
    return f"{significant(1e6 * float(share), 2)}e-6" if float(share) > 1e-12 else "0"


def own(folder: Path) -> Table:
    """Donors that members share or not, three modalities: against all pairs of one donor."""
    rows = _drawn(folder, "3")
    lines = []
    for row in rows:
        names = (row["N"], row["scheme"], row["donors"], row["K"])
        cells = (_percent("value_variance"), _percent("encoders_error"))
        cosine = f"{float(row['encoders_cosine']):.3f}"
        lines.append((*names, _bias(row), *(cell(row) for cell in cells), cosine))
    header = ("N", "scheme", "donors", "K", "value, %", "variance, %", "encoders, %", "cosine")
    return lines, header, rows


def costs(folder: Path) -> Table:
    """Time of the regularizer and memory of L_MIPD with K = 32 and with all pairs."""
    rows = read(folder / FILES["cost"])
    places = {(row["size"], row["N"]): None for row in rows}
    columns = {
        f"{term}, {k}": {"term": term, "K": k}
        for term in ("L_MIPD", "MCRLoss")
        for k in ("32", "all")
    }
    lines = [{"size": size, "N": n} for size, n in places]
    table = []
    for line, found in zip(lines, _pivot(rows, lines, columns), strict=True):
        times = [significant(number(row, "p50_ms"), 3) if row else "" for row in found]
        memory = [significant(number(row, "peak_mb"), 2) if row else "" for row in found[:2]]
        table.append((line["size"], line["N"], *times, *memory))
    header = ("fusion", "N", *(f"{name}, ms" for name in columns), "32, MB", "all, MB")
    return table, header, rows


def decision(folder: Path) -> Table:
    """What K = 32 leaves, and how many times its step's time all pairs take, by batch."""
    rows, timed = _drawn(folder), read(folder / FILES["cost"])
    sizes = list(dict.fromkeys(row["size"] for row in timed))
    lines = []
    for row in rows:
        n, last = row["N"], row["steps"] == _stages(rows)[-1]
        # up to 33 rows the default is all pairs
        default = row["scheme"] == "cyclic" and row["K"] == str(min(32, int(n) - 1))
        if last and default:
            shares = (_percent("value_predicted"), _percent("encoders_variance"))
            cosine = f"{float(row['encoders_cosine']):.3f}"
            ratios = [_all_over_default(timed, size, n) for size in sizes]
            lines.append((n, *(cell(row) for cell in shares), cosine, *ratios))
    header = ("N", "value, %", "gradient, %", "cosine")
    return lines, (*header, *(f"all / 32: {size}" for size in sizes)), [*rows, *timed]


def _all_over_default(rows: Sequence[Row], size: str, n: str) -> str:
    ms = {r["K"]: r["p50_ms"] for r in rows if (r["size"], r["N"], r["term"]) == (size, n, WHOLE)}
    return f"{float(ms['all']) / float(ms['32']):.2f}" if ms else ""


def trainings(folder: Path) -> Table:
    """Accuracy against the default, in points with 95 % intervals over seeds."""
    rows = read(folder / FILES["training"])
    table = []
    for setting in dict.fromkeys((row["batch"], row["weight"], row["steps"]) for row in rows):
        of_setting = [r for r in rows if (r["batch"], r["weight"], r["steps"]) == setting]
        here = _whole_seeds(of_setting)
        default = _accuracies(here, training.DEFAULT)
        for arm in training.ARMS:
            mine = _accuracies(here, arm)
            if mine:
                mean = f"{sum(mine.values()) / len(mine):.2f}"
                cells = (str(len(mine)), mean, _against(mine, default, arm))
                table.append((*setting, _name(arm), *cells))
    header = ("N", "weight", "steps", "donors", "seeds", "accuracy, %", "difference, points")
    return table, header, rows


def _name(arm: training.Arm) -> str:
    if arm.count == "all":
        return "all pairs"
    return f"{arm.scheme}, K = {arm.count}" if arm.count else "no L_MIPD"


def _whole_seeds(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Of a setting: a run that was stopped leaves a seed that not all arms have."""
    counts = Counter(row["seed"] for row in rows)
    return [row for row in rows if counts[row["seed"]] == max(counts.values())]


def _accuracies(rows: Sequence[Row], arm: training.Arm) -> dict[str, float]:
    """By seed."""
    found = (r for r in rows if (r["scheme"], r["K"]) == (arm.scheme, str(arm.count)))
    return {row["seed"]: float(row["accuracy"]) for row in found}


def _against(mine: dict[str, float], default: dict[str, float], arm: training.Arm) -> str:
    if arm == training.DEFAULT:
        return ""
    mean, half = training.interval([mine[seed] - default[seed] for seed in mine])
    return f"{mean:+.2f} ± {half:.2f}"


# what is made of each file: names of bench/table.py
TABLES: dict[str, dict[str, Callable[[Path], Table]]] = {
    "draws": {
        "estimator_bias": bias,
        "estimator_value": value,
        "estimator_gradient": gradient,
        "estimator_own": own,
    },
    "step": {"estimator_step": step},
    "cost": {"estimator_cost": costs, "estimator_decision": decision},
    "training": {"estimator_training": trainings},
}
