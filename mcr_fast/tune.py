"""Which weights: a short search over a user's own training runs, `python -m mcr_fast.tune`.

The search goes up a ladder: the task loss alone, then unimodal losses, then L_Con, then L_MIPD,
then the unimodal weight again beside them. Each rung is decided by the mean validation score.
docs/tuning.md says what it found where all weights were tried.
"""

import argparse
import csv
import importlib
import importlib.util
import itertools
import math
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mcr_fast.modules import MCRLoss
from mcr_fast.objective import MCRObjective

__all__ = ["Trial", "Tuned", "Weights", "tune"]

STEPS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0)  # of the unimodal weight
UNIMODAL = STEPS[1:-1]
CONTRASTIVE = (0.1, 0.3, 1.0)
MIPD = (0.0, 0.03, 0.1)  # beside the one that L_Con was chosen with
FIRST_MIPD = 0.01
COLUMNS = ("unimodal", "mipd", "contrastive", "seed", "score")


class Weights(NamedTuple):
    """The weights of one setting; all 0: the task loss alone."""

    unimodal: float
    mipd: float
    contrastive: float

    @property
    def kind(self) -> str:
        """``"joint"``, ``"multi-loss"`` or ``"MCR"``."""
        if self.mipd or self.contrastive:
            return "MCR"
        return "multi-loss" if self.unimodal else "joint"

    def objective(
        self, latent_dims: Sequence[int], num_classes: int, **of_loss: Any
    ) -> MCRObjective:
        """An `MCRObjective` with these weights; `of_loss`: what else `MCRLoss` takes."""
        of_loss = {**of_loss, "mipd_weight": self.mipd, "contrastive_weight": self.contrastive}
        loss = MCRLoss(latent_dims, num_classes, **of_loss)
        return MCRObjective(loss, unimodal_weight=self.unimodal)


class Trial(NamedTuple):
    """One setting and its score for each seed, in the order of the seeds."""

    weights: Weights
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the scores; a run that diverged (NaN) makes it minus infinity."""
        mean = statistics.fmean(self.scores)
        return -math.inf if math.isnan(mean) else mean


class Tuned(NamedTuple):
    """What `tune` returns.

    Attributes:
        weights: the best setting of the search.
        trials: all settings in the order in which they were tried, each with its scores.
        confirmed: the best setting of each kind with the seeds of `confirm`, by kind.
    """

    weights: Weights
    trials: tuple[Trial, ...]
    confirmed: dict[str, Trial]

    def report(self) -> str:
        """A table of the settings, the best one first, and what was confirmed."""
        lines = [f"{'unimodal':>9} {'mipd':>6} {'contrastive':>12} {'score':>10}  kind"]
        for trial in sorted(self.trials, key=lambda t: t.mean, reverse=True):
            u, m, c = trial.weights
            lines.append(f"{u:>9g} {m:>6g} {c:>12g} {trial.mean:>10.5g}  {trial.weights.kind}")
        lines.append(
            "The first one was chosen by these very runs, so its score here is flattering."
        )
        found = self.confirmed.get(self.weights.kind)
        for kind, other in self.confirmed.items():
            if found is not None and kind != self.weights.kind:
                lines.append(_compared(found, other))
        return "\n".join(lines)


# weights, seed -> the validation score of a short training run, the higher the better
Run = Callable[[Weights, int], float]


def tune(
    run: Run,
    *,
    seeds: Sequence[int] = (0, 1),
    confirm: Sequence[int] = (),
    path: str | Path | None = None,
    log: Callable[[str], None] = print,
) -> Tuned:
    """Search the weights of the unimodal losses, L_MIPD and L_Con.

    At most 13 settings, each with every seed: the task loss alone, 4 weights of the unimodal
    losses, 3 of L_Con beside the best of these, 3 of L_MIPD, and the unimodal weight once more up
    and down. A setting that was tried is not run again.

    Args:
        run: trains a model for a short while with the weights and the seed that it is given, and
            returns its score on validation data, the higher the better (of a loss return minus the
            loss). The seed has to set first weights and batches. NaN: the run diverged.
        seeds: of the search; two or more.
        confirm: other seeds, with which the best setting is compared with the best ones without the
            regularizer and without unimodal losses: the search's own scores flatter what it chose.
        path: a CSV file that each finished run is written to and that a search that was interrupted
            goes on from. Without it nothing is kept.
        log: told of each run.

    Raises:
        TypeError: `run` can't be called, or does not return a number.
        ValueError: fewer than two seeds, seeds that occur twice or in both lists, or a file of
            another kind at `path`.

    Example:
        >>> from mcr_fast.tune import tune
        >>> def run(weights, seed):  # in place of a training run
        ...     return 0.9 - (weights.unimodal - 1) ** 2 - (weights.contrastive - 0.3) ** 2
        >>> tune(run, log=lambda line: None).weights
        Weights(unimodal=1.0, mipd=0.01, contrastive=0.3)

    Reference:
        The terms: Algorithm 1 of arXiv 2411.07335. The order of the search is this library's.
    """
    if not callable(run):
        raise TypeError(f"run must be callable, got {type(run).__name__}")
    if len(seeds) < 2:
        raise ValueError(f"seeds must be two or more, got {list(seeds)}")
    if len({*seeds, *confirm}) < len(seeds) + len(confirm):
        raise ValueError(f"seeds and confirm must differ, got {list(seeds)} and {list(confirm)}")
    done = _Runs(run, None if path is None else Path(path), log)
    trials: dict[Weights, Trial] = {}
    for weights in _ladder(trials):
        if weights not in trials:
            trials[weights] = done.trial(weights, seeds)
    best = _best(trials)
    kinds: dict[str, Trial] = {}
    for kind in ("joint", "multi-loss", "MCR") if confirm else ():
        kinds[kind] = done.trial(_best(trials, kind), confirm)
    return Tuned(best, tuple(trials.values()), kinds)


def _best(trials: dict[Weights, Trial], kind: str | None = None) -> Weights:
    """The highest mean; of equal ones the first that was tried, which is the simpler one."""
    wanted = [t for t in trials.values() if kind in (None, t.weights.kind)]
    return max(wanted, key=lambda t: t.mean).weights


def _ladder(trials: dict[Weights, Trial]) -> Iterator[Weights]:
    """The settings in order; each rung looks at the trials that have been made."""
    yield Weights(0.0, 0.0, 0.0)
    yield from (Weights(u, 0.0, 0.0) for u in UNIMODAL)
    unimodal = _best(trials, "multi-loss").unimodal
    yield from (Weights(unimodal, FIRST_MIPD, c) for c in CONTRASTIVE)
    contrastive = _best(trials, "MCR").contrastive
    yield from (Weights(unimodal, m, contrastive) for m in MIPD)
    mipd = _best(trials, "MCR").mipd
    at = STEPS.index(unimodal)
    yield from (Weights(u, mipd, contrastive) for u in (STEPS[at + 1], STEPS[at - 1]))


class _Runs:
    """Runs that are kept in a file, if there is one."""

    def __init__(self, run: Run, path: Path | None, log: Callable[[str], None]) -> None:
        self._run, self._path, self._log = run, path, log
        self._known: dict[tuple[Weights, int], float] = {}
        if path is None:
            return
        if path.exists() and path.stat().st_size > 0:
            self._read(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")

    def _read(self, path: Path) -> None:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if tuple(reader.fieldnames or ()) != COLUMNS:
                raise ValueError(f"{path} is no file of this search: {reader.fieldnames}")
            for row in reader:
                try:
                    u, m, c, score = (float(row[name]) for name in (*COLUMNS[:3], "score"))
                    self._known[Weights(u, m, c), int(row["seed"])] = score
                except (TypeError, ValueError) as error:
                    raise ValueError(f"{path}, line {reader.line_num}: {error}") from None

    def trial(self, weights: Weights, seeds: Sequence[int]) -> Trial:
        return Trial(weights, tuple(self._score(weights, seed) for seed in seeds))

    def _score(self, weights: Weights, seed: int) -> float:
        if (weights, seed) not in self._known:
            found = self._run(weights, seed)
            try:
                score = float(found)
            except (TypeError, ValueError):
                raise TypeError(f"run must return a number, got {found!r}") from None
            self._known[weights, seed] = score
            if self._path is not None:
                with self._path.open("a", newline="", encoding="utf-8") as file:
                    csv.writer(file).writerow((*map(repr, weights), seed, repr(score)))
            told = ", ".join(f"{n} {w:g}" for n, w in zip(COLUMNS, weights, strict=False))
            self._log(f"{told}, seed {seed}: {score:.5g}")
        return self._known[weights, seed]


def _compared(found: Trial, other: Trial) -> str:
    """The mean difference over the seeds and its standard error."""
    gains = [a - b for a, b in zip(found.scores, other.scores, strict=True)]
    better = sum(gain > 0 for gain in gains)
    error = statistics.stdev(gains) / math.sqrt(len(gains)) if len(gains) > 1 else math.nan
    return (
        f"{found.weights.kind} against {other.weights.kind} with {len(gains)} other seeds: "
        f"{statistics.fmean(gains):+.4g}, standard error {error:.2g}, better with {better}"
    )


def _function(name: str) -> Run:
    """``module:function`` or ``file.py:function``."""
    module, _, function = name.rpartition(":")
    if not module or not function:
        raise SystemExit(f"say module:function or file.py:function, not {name!r}")
    sys.path.insert(0, str(Path(module).resolve().parent if module.endswith(".py") else Path.cwd()))
    found = importlib.import_module(Path(module).stem if module.endswith(".py") else module)
    run: Run | None = getattr(found, function, None)
    if run is None:
        raise SystemExit(f"{module} has no {function}")
    return run


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m mcr_fast.tune",
        description="Search the weights of the unimodal losses, L_MIPD and L_Con.",
    )
    parser.add_argument("run", help="module:function or file.py:function; (weights, seed) -> score")
    parser.add_argument("--seeds", type=int, default=2, help="of the search")
    parser.add_argument("--confirm", type=int, default=4, help="other seeds, for the best ones")
    parser.add_argument("--out", type=Path, default=Path("mcr-tune.csv"), help="what is kept")
    given = parser.parse_args(arguments)
    seeds = itertools.count()
    found = tune(
        _function(given.run),
        seeds=list(itertools.islice(seeds, given.seeds)),
        confirm=list(itertools.islice(seeds, given.confirm)),
        path=given.out,
    )
    print(f"\n{found.report()}")


if __name__ == "__main__":
    main()
