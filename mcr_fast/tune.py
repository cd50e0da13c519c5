"""Which weights: a short search over a user's own training runs, `python -m mcr_fast.tune`.

The search goes up a ladder: the task loss alone, then unimodal losses, then L_Con, then L_MIPD,
then the unimodal weight again beside them. Each rung is decided by the mean validation score.
docs/tuning.md says what to make of the result.
"""

import argparse
import csv
import importlib
import importlib.util
import math
import statistics
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mcr_fast.modules import MCRLoss
from mcr_fast.objective import OPTIONS, MCRObjective

__all__ = ["Trial", "Tuned", "Weights", "tune"]

STEPS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)  # of the unimodal weight
UNIMODAL = STEPS[1:-1]
CONTRASTIVE = (0.1, 0.3, 1.0, 3.0)
MIPD = (0.0, 0.03, 0.1)  # beside the one that L_Con was chosen with
FIRST_MIPD = 0.01
KINDS = ("joint", "multi-loss", "MCR")  # the simplest first
COLUMNS = ("run", "unimodal", "mipd", "contrastive", "seed", "score")


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
        self, latent_dims: Sequence[int], num_classes: int, **options: Any
    ) -> MCRObjective:
        """An `MCRObjective` with these weights; options: what else it and `MCRLoss` take."""
        own = {name: options.pop(name) for name in OPTIONS if name in options}
        options |= {"mipd_weight": self.mipd, "contrastive_weight": self.contrastive}
        loss = MCRLoss(latent_dims, num_classes, **options)
        return MCRObjective(loss, **{**own, "unimodal_weight": self.unimodal})


class Trial(NamedTuple):
    """One setting and its score for each seed, in the order of the seeds."""

    weights: Weights
    scores: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Of the scores; a run that diverged (NaN or infinite) makes it minus infinity."""
        mean = statistics.fmean(self.scores)
        return mean if math.isfinite(mean) else -math.inf


class Tuned(NamedTuple):
    """What `tune` returns.

    Attributes:
        weights: what to take. With seeds to confirm: the best setting of the simplest kind that is
            within one standard error of the best; without: the best one of the search.
        trials: all settings in the order in which they were tried, each with its scores.
        confirmed: the best setting of each kind with the seeds of `confirm`, by kind.
    """

    weights: Weights
    trials: tuple[Trial, ...]
    confirmed: dict[str, Trial]

    def edges(self) -> list[str]:
        """What of the best setting of the search is the smallest or largest tried, 0 left out."""
        best, found = _best(self.trials), []
        for at, (name, weight) in enumerate(zip(Weights._fields, best, strict=True)):
            tried = {trial.weights[at] for trial in self.trials} - {0.0}
            if weight and weight in (min(tried), max(tried)):
                found.append(f"{name} {weight:g}")
        return found

    def report(self) -> str:
        """A table of the settings, the best one first, and what was confirmed."""
        lines = [f"{'unimodal':>9} {'mipd':>6} {'contrastive':>12} {'score':>10}  kind"]
        for trial in sorted(self.trials, key=lambda t: t.mean, reverse=True):
            u, m, c = trial.weights
            lines.append(f"{u:>9g} {m:>6g} {c:>12g} {trial.mean:>10.5g}  {trial.weights.kind}")
        lines.append("The first one was chosen by these very runs: its score here is flattering.")
        if edges := self.edges():
            lines.append(f"It is at the edge of what was tried: {', '.join(edges)}. Try further.")
        for kind, trial in self.confirmed.items():
            lines.append(f"with {len(trial.scores)} other seeds, {kind}: {trial.mean:.5g}")
        mcr = self.confirmed.get("MCR")
        for kind, trial in self.confirmed.items():
            if mcr is not None and kind != "MCR":
                lines.append(f"MCR minus {kind}: {_difference(mcr, trial)}")
        u, m, c = self.weights
        lines.append(f"Take unimodal {u:g}, mipd {m:g}, contrastive {c:g}: {self.weights.kind}.")
        return "\n".join(lines)


# weights, seed -> the validation score of a short training run, the higher the better
Run = Callable[[Weights, int], float]


def tune(
    run: Run,
    *,
    seeds: Sequence[int] = (0, 1),
    confirm: Sequence[int] = (),
    path: str | Path | None = None,
    name: str = "",
    log: Callable[[str], None] = print,
) -> Tuned:
    """Search the weights of the unimodal losses, L_MIPD and L_Con.

    At most 15 settings, each with every seed: the task loss alone, 5 weights of the unimodal
    losses, 4 of L_Con beside the best of these, 3 more of L_MIPD, and the unimodal weight once
    more up and down. A setting that was tried is not run again.

    Args:
        run: trains a model for a short while with the weights and the seed that it is given, and
            returns its score on validation data, the higher the better (of a loss return minus the
            loss). The seed has to set first weights and batches. NaN or infinite: it diverged.
        seeds: of the search; two or more.
        confirm: other seeds, with which the best setting of each kind (task loss alone, multi-loss,
            MCR) is run again: the search's own scores flatter what it chose. Two or more, or none.
        path: a CSV file that each finished run is written to and that a search that was interrupted
            goes on from. It knows weights and seeds only: if the training changes, take another
            file or another name. Without it nothing is kept.
        name: of the training, kept in the file; a file of another name is refused.
        log: told of each run.

    Raises:
        TypeError: `run` can't be called, or does not return a number.
        ValueError: fewer than two seeds, seeds that occur twice or in both lists, or a file of
            another kind or name at `path`.

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
    if len(seeds) < 2 or len(confirm) == 1:
        raise ValueError(
            "seeds must be two or more, and confirm two or more or none, got "
            f"{list(seeds)} and {list(confirm)}"
        )
    if len({*seeds, *confirm}) < len(seeds) + len(confirm):
        raise ValueError(f"seeds and confirm must differ, got {list(seeds)} and {list(confirm)}")
    runs = _Runs(run, None if path is None else Path(path), name, log)
    trials: dict[Weights, Trial] = {}
    for weights in _ladder(trials):
        if weights not in trials:
            trials[weights] = runs.trial(weights, seeds)
    confirmed = {}
    for kind in KINDS if confirm else ():
        confirmed[kind] = runs.trial(_best(trials.values(), kind), confirm)
    taken = _simplest(confirmed) if confirmed else _best(trials.values())
    return Tuned(taken, tuple(trials.values()), confirmed)


def _best(trials: Iterable[Trial], kind: str | None = None) -> Weights:
    """The highest mean; of equal ones the first that was tried, which is the simpler one."""
    wanted = [t for t in trials if kind in (None, t.weights.kind)]
    return max(wanted, key=lambda t: t.mean).weights


def _simplest(confirmed: Mapping[str, Trial]) -> Weights:
    """Of the simplest kind that the best one is not above by more than a standard error."""
    best = max(confirmed.values(), key=lambda t: t.mean)
    for kind in KINDS:
        trial = confirmed[kind]
        if math.isfinite(trial.mean) and best.mean - trial.mean <= _error(best, trial):
            return trial.weights
    return best.weights


def _gains(trial: Trial, other: Trial) -> list[float]:
    return [a - b for a, b in zip(trial.scores, other.scores, strict=True)]


def _error(trial: Trial, other: Trial) -> float:
    """The standard error of the mean difference over the seeds; 0 if a run diverged."""
    gains = _gains(trial, other)
    finite = all(map(math.isfinite, gains))
    return statistics.stdev(gains) / math.sqrt(len(gains)) if finite else 0.0


def _difference(trial: Trial, other: Trial) -> str:
    """The mean over the seeds, its standard error, and how many seeds agree."""
    if not all(math.isfinite(t.mean) for t in (trial, other)):
        return "a run diverged"
    gains, error = _gains(trial, other), _error(trial, other)
    better = f"above with {sum(gain > 0 for gain in gains)} of {len(gains)} seeds"
    return f"{statistics.fmean(gains):+.4g}, standard error {error:.2g}, {better}"


def _ladder(trials: Mapping[Weights, Trial]) -> Iterator[Weights]:
    """The settings in order; each rung looks at the trials that have been made."""
    yield Weights(0.0, 0.0, 0.0)
    yield from (Weights(u, 0.0, 0.0) for u in UNIMODAL)
    unimodal = _best(trials.values(), "multi-loss").unimodal
    yield from (Weights(unimodal, FIRST_MIPD, c) for c in CONTRASTIVE)
    contrastive = _best(trials.values(), "MCR").contrastive
    yield from (Weights(unimodal, m, contrastive) for m in MIPD)
    mipd = _best(trials.values(), "MCR").mipd
    at = STEPS.index(unimodal)
    yield from (Weights(u, mipd, contrastive) for u in (STEPS[at + 1], STEPS[at - 1]))


class _Runs:
    """Runs that are kept in a file, if there is one."""

    def __init__(self, run: Run, path: Path | None, name: str, log: Callable[[str], None]) -> None:
        self._run, self._path, self._name, self._log = run, path, name, log
        self._known: dict[tuple[Weights, int], float] = {}
        if path is None:
            return
        if path.exists() and path.stat().st_size > 0:
            self._read(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._write(COLUMNS, "w")

    def _write(self, row: Sequence[Any], mode: str = "a") -> None:
        if self._path is not None:
            with self._path.open(mode, newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerow(row)

    def _read(self, path: Path) -> None:
        """What is known; a last line that a killed process did not finish is dropped."""
        text = path.read_text(encoding="utf-8")
        whole = text[: text.rfind("\n") + 1]
        lines = csv.reader(whole.splitlines())
        header = next(lines, [])
        if tuple(header) != COLUMNS:
            raise ValueError(f"{path} is no file of this search: its columns are {header}")
        for number, row in enumerate(lines, 2):
            try:
                name, *cells, score = row
                u, m, c = map(float, cells[:3])
                (seed,) = map(int, cells[3:])
                self._known[Weights(u, m, c), seed] = float(score)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from None
            if name != self._name:
                raise ValueError(f"{path} has runs of {name!r}, not of {self._name!r}")
        if whole != text:
            path.write_text(whole, encoding="utf-8")
        taken = f"{len(self._known)} runs are taken from {path}"
        self._log(f"{taken}; if the training has changed since, delete it")

    def trial(self, weights: Weights, seeds: Sequence[int]) -> Trial:
        return Trial(weights, tuple(self._score(weights, seed) for seed in seeds))

    def _score(self, weights: Weights, seed: int) -> float:
        if (weights, seed) not in self._known:
            found = self._run(weights, seed)
            if not hasattr(found, "__float__"):  # float() would read a text
                raise TypeError(f"run must return a number, got {found!r}")
            score = float(found)
            self._known[weights, seed] = score
            self._write((self._name, *map(repr, weights), seed, repr(score)))
            told = ", ".join(f"{n} {w:g}" for n, w in zip(Weights._fields, weights, strict=True))
            self._log(f"{told}, seed {seed}: {score:.5g}")
        return self._known[weights, seed]


def _function(name: str) -> Run:
    """``module:function`` or ``file.py:function``."""
    module, _, function = name.rpartition(":")
    if not module or not function:
        raise SystemExit(f"say module:function or file.py:function, not {name!r}")
    if module.endswith(".py"):
        path = Path(module).resolve()
        if not path.is_file():
            raise SystemExit(f"there is no file {module}")
        sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None
        assert spec.loader is not None
        found = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(found)
    else:
        sys.path.insert(0, str(Path.cwd()))
        found = importlib.import_module(module)
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
    parser.add_argument("--seeds", type=int, default=2, help="of the search, 2 or more")
    parser.add_argument("--confirm", type=int, default=4, help="other seeds for the best, or 0")
    parser.add_argument("--out", type=Path, default=Path("mcr-tune.csv"), help="what is kept")
    given = parser.parse_args(arguments)
    if given.seeds < 2 or given.confirm < 0 or given.confirm == 1:
        parser.error("--seeds must be 2 or more, --confirm 2 or more or 0")
    seeds = range(given.seeds + given.confirm)
    found = tune(
        _function(given.run),
        seeds=seeds[: given.seeds],
        confirm=seeds[given.seeds :],
        path=given.out,
        name=given.run,
    )
    print(f"\n{found.report()}")


if __name__ == "__main__":
    main()
