"""The rows of the results as figures by setting, method and seed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from . import jobs, records
from .chosen import Chosen, Effort, available_methods
from .data import FAMILIES
from .intervals import BySeed, Interval, Rank, averaged, mean, paired, ranks

Place = tuple[str, float]  # a family and the value of its setting
Row = Mapping[str, str]

ENSEMBLE = "unimodal"


@dataclass(frozen=True)
class Outcomes:
    """All rows that count: of chosen options, the last one written of each."""

    rows: dict[tuple[str, Place, str, str, int], Row]  # experiment, place, method, variant, seed
    chosen: Chosen
    effort: Effort

    @cached_property
    def by_cell(self) -> dict[tuple[str, Place, str, str], dict[int, Row]]:
        """The rows by seed of an experiment, place, method and variant."""
        found: dict[tuple[str, Place, str, str], dict[int, Row]] = {}
        for key, row in self.rows.items():
            found.setdefault(key[:-1], {})[key[-1]] = row
        return found

    def figures(self, place: Place, method: str, column: str = "test") -> BySeed:
        """A column by seed, in percent; empty cells are left out."""
        found = self.by_cell.get((place[0], place, method, ""), {})
        return {seed: 100 * float(row[column]) for seed, row in found.items() if row[column]}

    def variant(self, place: Place, name: str) -> BySeed:
        """Test accuracy of a variant of MCR; of one that changes nothing, the main result's."""
        if self.chosen.has(place[0], "MCR") and not jobs.changes(place[0], name, self.chosen):
            return self.figures(place, "MCR")
        found = self.by_cell.get(("ablations", place, "MCR", name), {})
        return {seed: 100 * float(row["test"]) for seed, row in found.items()}

    def difference(self, place: Place, method: str, other: str, column: str = "test") -> Interval:
        """Method minus other, in points."""
        return paired(self.figures(place, method, column), self.figures(place, other, column))

    def family_difference(self, family: str, method: str, other: str) -> Interval:
        """The same of each seed's mean over all settings of a family."""
        places = [(family, value) for value in FAMILIES[family].values]
        first, second = (
            averaged([self.figures(p, name) for p in places]) for name in (method, other)
        )
        return paired(first, second)

    def methods(self, family: str) -> list[str]:
        """Those with rows, in the order of the tables."""
        found = {key[2] for key in self.by_cell if key[0] == family}
        return [name for name in available_methods() if name in found]

    def places(self, family: str) -> list[Place]:
        """The settings with rows, in their order; none of a family that is not known."""
        if family not in FAMILIES:
            return []
        found = {key[1] for key in self.by_cell if key[0] == family}
        return [(family, value) for value in FAMILIES[family].values if (family, value) in found]

    def all_places(self) -> list[Place]:
        return [place for family in FAMILIES for place in self.places(family)]

    def common_seeds(self, places: Sequence[Place]) -> list[int]:
        """The seeds that every method with rows in these settings has in all of them."""
        sets = [
            set(self.figures(place, name)) for place in places for name in self.methods(place[0])
        ]
        return sorted(set.intersection(*sets)) if sets else []

    def better_alone(self, place: Place) -> BySeed:
        """Accuracy of the modality whose own model is better, by the mean over the seeds."""
        each = [self.figures(place, ENSEMBLE, f"alone_{m}") for m in range(2)]
        return max(each, key=mean) if all(each) else {}

    def sign(self, place: Place) -> Interval:
        """Joint training minus the better modality alone, points."""
        return paired(self.figures(place, "joint"), self.better_alone(place))

    @cached_property
    def ranks(self) -> dict[str, Rank]:
        """Over all settings and the seeds that all methods with a full set of them have."""
        places = self.all_places()
        names = [n for n in available_methods() if all(n in self.methods(p[0]) for p in places)]
        found = {(place, name): self.figures(place, name) for place in places for name in names}
        seeds = set.intersection(*(set(figures) for figures in found.values())) if found else set()
        return ranks(
            {
                seed: [{name: found[place, name][seed] for name in names} for place in places]
                for seed in sorted(seeds)
            }
        )

    def complete(self) -> bool:
        """Whether every method has its rows of every setting and seed."""
        return all(
            len(self.figures((name, value), method)) >= self.effort.seeds_of(name, method)
            for name, family in FAMILIES.items()
            for value in family.values
            for method in available_methods()
        )


def load(folder: Path, effort: Effort | None = None) -> Outcomes:
    """Everything that the files of a folder have."""
    effort = effort or Effort()
    chosen = Chosen.of(records.rows(records.path_of(folder, "tuning")), effort)
    found = {}
    for experiment in jobs.EXPERIMENTS:
        for row in records.rows(records.path_of(folder, experiment)):
            if counts(row, chosen, effort):
                place = (row["family"], float(row["value"]))
                key = (experiment, place, row["method"], row["variant"], int(row["seed"]))
                found[key] = row
    return Outcomes(found, chosen, effort)


def counts(row: Row, chosen: Chosen, effort: Effort) -> bool:
    """Whether a row is of as many epochs and of the options that tuning chooses today."""
    if row["epochs"] != str(effort.epochs) or row["variant"] not in ("", *jobs.ABLATIONS):
        return False
    return chosen.count(row, jobs.ABLATIONS.get(row["variant"]))


def seeds_in_words(seeds: Iterable[int]) -> str:
    """`8 seeds (0 to 7)`, and each of them if some between are not there."""
    found = sorted(set(seeds))
    if len(found) < 2:
        return f"1 seed ({found[0]})" if found else "no seed"
    gaps = found[-1] - found[0] + 1 > len(found)
    names = ", ".join(map(str, found)) if gaps else f"{found[0]} to {found[-1]}"
    return f"{len(found)} seeds ({names})"


def origin(rows: Iterable[Row]) -> str:
    """Where rows come from, in words."""
    by_date = sorted(rows, key=lambda row: row["date"])
    if not by_date:
        return "Not measured yet."
    commits = list(dict.fromkeys(row["commit"] for row in by_date))
    dirty = ", with uncommitted changes" if any(r["dirty"] == "yes" for r in by_date) else ""
    last = by_date[-1]
    several = " (rows of more than one commit)" if len(commits) > 1 else ""
    epochs = ", ".join(dict.fromkeys(row["epochs"] for row in by_date))
    return (
        f"{seeds_in_words(int(row['seed']) for row in by_date)}, {epochs} epochs; "
        f"{last['device']}, one thread a training, torch {last['torch']}, commit "
        f"{', '.join(commits)}{several}{dirty}, {last['date'][:10]}; "
        "generated by `python -m examples.competition report`."
    )
