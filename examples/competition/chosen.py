"""How much is trained, and what tuning has chosen so far."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

from . import tuning
from .data import FAMILIES
from .rivals import STRATEGIES, find
from .training import EPOCHS
from .tuning import Options, text_of

NO_TEACHER = "{}"


@dataclass(frozen=True)
class Effort:
    """How much of everything; the defaults are what is published."""

    seeds: int = 8
    more_seeds: int = 24  # of these methods in these families
    more_methods: tuple[str, ...] = ("joint", "unimodal", "multi-loss", "MCR")
    more_families: tuple[str, ...] = ("speed", "figure1")
    epochs: int = EPOCHS
    tries: int | None = None  # of each stage, None for all
    tuning_places: int = 2  # settings and seeds of a family

    @staticmethod
    def quick() -> "Effort":
        """To see that all of it runs; its figures say nothing."""
        return Effort(seeds=2, more_seeds=2, epochs=3, tries=2, tuning_places=1)

    def seeds_of(self, family: str, method: str) -> int:
        more = family in self.more_families and method in self.more_methods
        return max(self.seeds, self.more_seeds) if more else self.seeds

    def places(self, family: str) -> list[tuple[float, int]]:
        """Settings and seeds that a family is tuned on."""
        return tuning.places(FAMILIES[family].values, self.tuning_places)

    def number_of_tries(self, method: str) -> int:
        stages = len(tuning.rates(method)), len(tuning.TRIES[method])
        return sum(min(count, self.tries or count) for count in stages) - 1


@dataclass(frozen=True)
class Chosen:
    """The options of a family's methods, and what the first stage says of the others."""

    by_family: Mapping[str, Mapping[str, Options]] = field(default_factory=dict)
    rates: Mapping[tuple[str, str], float] = field(default_factory=dict)  # family and method

    @staticmethod
    def of(rows: Iterable[Mapping[str, str]], effort: Effort) -> "Chosen":
        """From rows of tuning: those of today's tries, on all of their places, teachers' included.

        A stage with a missing row chooses nothing.
        """
        measured: dict[tuple[str, ...], float] = {}
        for row in rows:
            if row["epochs"] == str(effort.epochs):
                columns = ("family", "method", "options", "teacher", "value", "seed")
                measured[tuple(row[c] for c in columns)] = float(row["validation"])
        found = Chosen()
        for family in FAMILIES:
            if tuned_on(family) == family:
                for method in available_methods():
                    found = found.with_choice(family, method, measured, effort)
        return found

    def with_choice(
        self, family: str, method: str, measured: Mapping[tuple[str, ...], float], effort: Effort
    ) -> "Chosen":
        """The same after a method's stages, as far as their rows are there."""
        teacher, found = self.teacher(family, method), self

        def best(tries: list[Options]) -> Options | None:
            places = [(f"{value:g}", str(seed)) for value, seed in effort.places(family)]
            texts = {text_of(options) for options in tries}
            keys = {text: [(family, method, text, teacher, *p) for p in places] for text in texts}
            if not tries or not all(key in measured for each in keys.values() for key in each):
                return None
            return tuning.best(tries, {t: [measured[key] for key in k] for t, k in keys.items()})

        if teacher is None:
            return self
        first = best(self.tries(family, method, effort))
        if first is None:
            return self
        found = replace(self, rates={**self.rates, (family, method): first["lr"]})
        # joint training and others that have a rate only: the second stage has the first one's best
        second = best(found.tries(family, method, effort))
        if second is None:
            return found
        of_family = {**self.by_family.get(family, {}), method: second}
        return replace(found, by_family={**self.by_family, family: of_family})

    def tries(self, family: str, method: str, effort: Effort) -> list[Options]:
        """Those of the stage that a method is in; none while multi-loss has not chosen for it."""
        weight = self.by_family.get(family, {}).get("multi-loss", {}).get("weight")
        if method in tuning.HEIR and weight is None:
            return []
        lr = self.rates.get((family, method))
        if lr is None:
            return tuning.rate_tries(method, weight)[: effort.tries]
        return tuning.option_tries(method, weight, lr)[: effort.tries]

    def has(self, family: str, method: str) -> bool:
        return method in self.by_family.get(tuned_on(family), {})

    def options(self, family: str, method: str) -> Options:
        """Of a method; the family that it is tuned on may be another one. A KeyError without."""
        return self.by_family[tuned_on(family)][method]

    def teacher(self, family: str, method: str) -> str | None:
        """Options of the unimodal models it learns from, if any; None if they have not chosen."""
        if not find(method).needs_teachers:
            return NO_TEACHER
        return text_of(self.options(family, "unimodal")) if self.has(family, "unimodal") else None

    def count(self, row: Mapping[str, str], changed: Options | None = None) -> bool:
        """Whether a row's options, teacher's included, are what is chosen, with this change."""
        family, method = row["family"], row["method"]
        if not self.has(family, method) or row["teacher"] != self.teacher(family, method):
            return False
        found: Options = json.loads(row["options"])
        return found == {**self.options(family, method), **(changed or {})}


def tuned_on(family: str) -> str:
    """The family whose choice of options is used."""
    return FAMILIES[family].tuned_on or family


@cache
def available_methods() -> tuple[str, ...]:
    """All strategies that have tries, those that others take choices from first."""
    return tuple(name for name in STRATEGIES if name in tuning.TRIES)
