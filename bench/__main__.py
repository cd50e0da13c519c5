"""`python -m bench run`, `plot`, `compare`, `table`, and more: see `python -m bench --help`."""

import argparse
import sys
from pathlib import Path

import torch
from tabulate import tabulate

from bench import launches, local_term, machine, monitor, results, tune_triton, two_speed
from bench.estimator import command as estimator
from bench.gpu import command as gpu_command
from bench.measure import Effort, measure
from bench.model import command as model_command
from bench.model import scaling
from bench.registry import MODES, STEMS, default_modes, select

SHOWN = ("provider", "p20_ms", "p50_ms", "p80_ms", "ratio_to_ours", "peak_mb", "element_ns")
SHOWN += ("floor_fraction", "compile_s", "skipped")
PAGES = ("README.md", "docs/benchmarks.md", "docs/estimator.md", "docs/scaling.md")
PAGES += ("docs/training.md",)


def _run(options: argparse.Namespace) -> int:
    if options.threads:
        torch.set_num_threads(options.threads)
    effort = (
        Effort.quick() if options.quick else Effort(options.seconds, memory=not options.no_memory)
    )
    out = options.out or results.folder()
    print(f"{machine.device()}, threads: {torch.get_num_threads()}, load: {machine.load():.1f}")
    if options.targets:
        return _run_targets(effort, out)
    chosen = select(options.op or [], options.case, quick=options.quick)
    if not chosen:
        print("no case has such a name", file=sys.stderr)
        return 2
    for benchmark, case in chosen:
        for mode in options.mode or default_modes(case):
            rows = measure(benchmark, case, mode, effort)
            print(f"\n{case.op} {case.name} {mode}")
            print(tabulate([[row.get(c, "") for c in SHOWN] for row in rows], SHOWN))
            results.merge(out / f"{case.op}.csv", rows)
    print(f"\nwritten to {out}")
    return 0


def _run_targets(effort: Effort, out: Path) -> int:
    from bench.targets import run_targets

    rows = []
    for row in run_targets(effort):
        rows.append(row)
        figure = f"{row['measured']} {row['unit']}".strip()
        detail = f"   ({row['detail']})" if row["detail"] else ""
        print(f"{row['passed']}  {row['what']}: {figure}, goal {row['goal']}{detail}", flush=True)
    results.write(out / "targets.csv", rows, results.TARGET_COLUMNS)
    missed = sum(row["passed"] != "pass" for row in rows)
    print(f"{len(rows) - missed} passed, {missed} missed; written to {out / 'targets.csv'}")
    return 0


def _plot(options: argparse.Namespace) -> int:
    from bench.plots import plot

    for path in plot(results.folder(options.machine)):
        print(path)
    return 0


def _compare(options: argparse.Namespace) -> int:
    from bench.compare import compare

    text, slower = compare(options.before, options.after, options.threshold, options.provider)
    print(text)
    return 1 if slower else 0


def _table(options: argparse.Namespace) -> int:
    from bench.table import write_tables

    for path in options.file or [machine.ROOT / page for page in PAGES]:
        count = write_tables(path, results.folder(options.machine)) if path.exists() else 0
        print(f"{path}: {count} tables")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    several, its_folder = "can be repeated; all if left out", "instead of bench/results/<machine>"

    run = commands.add_parser("run", help="measure, print, and add to the results")
    run.add_argument("--op", action="append", choices=STEMS, help=several)
    run.add_argument("--case", default="", help="only cases with this in their name, such as N512")
    run.add_argument("--mode", action="append", choices=MODES, help=f"{several}: sweeps full only")
    run.add_argument("--quick", action="store_true", help="smallest cases, a few calls, no memory")
    run.add_argument("--targets", action="store_true", help="the figures that ours must reach")
    run.add_argument("--seconds", type=float, default=1.0, help="of calls for each provider")
    run.add_argument("--no-memory", action="store_true", help="times only")
    run.add_argument("--threads", type=int, help="torch's threads")
    run.add_argument("--out", type=Path, help=its_folder)
    run.set_defaults(command=_run)

    plot = commands.add_parser("plot", help="draw the results beside their files")
    plot.add_argument("--machine", help=its_folder)
    plot.set_defaults(command=_plot)

    compare = commands.add_parser("compare", help="exit 1 if B is slower than A")
    compare.add_argument("before", type=Path, metavar="A.csv")
    compare.add_argument("after", type=Path, metavar="B.csv")
    compare.add_argument("--threshold", type=float, default=1.1, help="ratio of medians")
    compare.add_argument("--provider", default="ours")
    compare.set_defaults(command=_compare)

    table = commands.add_parser("table", help="write the tables of the README and of docs")
    table.add_argument("--machine", help=its_folder)
    table.add_argument("--file", type=Path, action="append", help="instead of those")
    table.set_defaults(command=_table)

    for name, module, words in (
        ("two_speed", two_speed, "accuracy: train on a task of two speeds"),
        ("monitor", monitor, "what MCRMonitor costs a step, and what it takes by hand"),
        ("estimator", estimator, "bias, variance, cost and accuracy of the draw of donors"),
        ("launches", launches, "count what a step starts on a GPU; needs none"),
        ("local_term", local_term, "what contrasting each rank's rows alone changes"),
        ("model", model_command, "predict the rows of the goals on an H200; needs no GPU"),
        ("scaling", scaling, "what a contrastive term over all ranks costs, modelled"),
        ("gpu", gpu_command, "check every kernel on this GPU, then measure it"),
        ("tune", tune_triton, "try launch configurations of Triton kernels on a GPU"),
    ):
        module.add_arguments(commands.add_parser(name, help=words))
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command line."""
    options = _parser().parse_args(arguments)
    return options.command(options)


if __name__ == "__main__":
    sys.exit(main())
