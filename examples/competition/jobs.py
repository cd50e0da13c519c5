"""What the experiments consist of: trainings, each with a name that a rerun knows it by."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from . import tuning
from .data import FAMILIES
from .rivals import STRATEGIES, find
from .training import EPOCHS
from .tuning import Options, text_of

EXPERIMENTS = (*FAMILIES, "ablations")
ABLATED = (("speed", 0.05), ("digits", 0.05))

# Changes of the chosen MCR; a variant that is the chosen one itself is trained all the same.
ABLATIONS: dict[str, Options] = {
    "as chosen": {},
    "independent": {"strategy": "independent"},
    "collaborative": {"strategy": "collaborative"},
    "without MIPD": {"mipd": 0.0},
    "without L_Con": {"contrastive": 0.0},
    "without both: multi-loss": {"mipd": 0.0, "contrastive": 0.0},
    "without unimodal losses": {"weight": 0.0},
    "only MIPD": {"weight": 0.0, "contrastive": 0.0},
    "with L_CEB": {"ceb": 1.0},
    "K = 4": {"num_permutations": 4},
    "K = all": {"num_permutations": "all"},
    "scheme: uniform": {"scheme": "uniform"},
    "clean path: routed": {"clean_path": "routed"},
    "clean path: detached": {"clean_path": "detached"},
    "exclude: same label": {"exclude": "same_label"},
    "weight of MIPD: 0.03": {"mipd": 0.03},
    "weight of MIPD: 0.3": {"mipd": 0.3},
    "weight of MIPD: 1": {"mipd": 1.0},
}


@dataclass(frozen=True)
class Effort:
    """How much of everything; the defaults are what is published."""

    seeds: int = 8
    epochs: int = EPOCHS
    tries: int | None = None  # of a method, None for all
    tuning_places: int | None = None  # settings and seeds of a family

    @staticmethod
    def quick() -> "Effort":
        """To see that all of it runs; its figures say nothing."""
        return Effort(seeds=2, epochs=3, tries=2, tuning_places=1)


@dataclass(frozen=True)
class Job:
    """One training, as its row of the results names it."""

    experiment: str  # a family, "ablations" or "tuning": the file
    family: str
    value: float
    method: str
    variant: str  # of an ablation
    options: str  # JSON
    seed: int
    teacher: str = "{}"  # options of the unimodal models, JSON

    @property
    def key(self) -> tuple[str, ...]:
        """The cells that tell rows of a file apart."""
        cells = (self.family, f"{self.value:g}", self.method, self.variant, self.options)
        return (*cells, str(self.seed), self.teacher)

    def decoded(self) -> tuple[Options, Options]:
        """The options and those of the unimodal models."""
        return json.loads(self.options), json.loads(self.teacher)


KEY = ("family", "value", "method", "variant", "options", "seed", "teacher")


@dataclass(frozen=True)
class Chosen:
    """The options of a family's methods, as tuning chose them so far."""

    by_family: Mapping[str, Mapping[str, Options]]

    @staticmethod
    def of(rows: Iterable[Mapping[str, str]], methods: Sequence[str]) -> "Chosen":
        """From the rows of tuning, those of these methods and of tries that are tried today."""
        rows = list(rows)
        found: dict[str, dict[str, Options]] = {}
        for family in FAMILIES:
            for method in methods:
                tried = {text_of(options) for options in tries(family, method, found)}
                own = [
                    row
                    for row in rows
                    if (row["family"], row["method"]) == (family, method)
                    and row["options"] in tried
                ]
                best = tuning.best(own)
                if best is not None:
                    found.setdefault(family, {})[method] = json.loads(best)
        return Chosen(found)

    def options(self, family: str, method: str) -> Options:
        """Of a method; the family that it is tuned on may be another one."""
        return self.by_family[tuned_on(family)][method]

    def teacher(self, family: str, method: str) -> str:
        """Those of the unimodal models, for a method that learns from them."""
        return text_of(self.options(family, "unimodal")) if find(method).needs_teachers else "{}"


def tuned_on(family: str) -> str:
    """The family whose choice of options is used."""
    return FAMILIES[family].tuned_on or family


def tries(family: str, method: str, chosen: Mapping[str, Mapping[str, Options]]) -> list[Options]:
    """The tries of a method: at joint training's rate, unless it chooses its own.

    None as long as joint training has not chosen.
    """
    if method in tuning.OWN_RATE:
        return tuning.TRIES[method]
    joint = chosen.get(family, {}).get("joint")
    return [] if joint is None else [{**options, **joint} for options in tuning.TRIES[method]]


def tuning_jobs(
    families: Iterable[str], methods: Iterable[str], chosen: Chosen, effort: Effort
) -> Iterator[Job]:
    """All tries that can be made at this stage."""
    for family in dict.fromkeys(map(tuned_on, families)):
        places = tuning.places(FAMILIES[family].values)[: effort.tuning_places]
        for method in methods:
            options = tries(family, method, chosen.by_family)[: effort.tries]
            teacher = chosen.teacher(family, method) if options else "{}"
            # the only try is not compared with anything: one training makes it known
            several = len(options) > 1
            for each in options:
                for value, seed in places if several else places[:1]:
                    text = text_of(each)
                    yield Job("tuning", family, value, method, "", text, seed, teacher)


def final_jobs(family: str, methods: Iterable[str], seeds: int, chosen: Chosen) -> Iterator[Job]:
    """Every method with its chosen options, seed by seed."""
    for seed in range(seeds):
        for value in FAMILIES[family].values:
            for method in methods:
                text = text_of(chosen.options(family, method))
                teacher = chosen.teacher(family, method)
                yield Job(family, family, value, method, "", text, seed, teacher)


def ablation_jobs(seeds: int, chosen: Chosen) -> Iterator[Job]:
    """Every variant of MCR, and joint training and multi-loss beside them."""
    for seed in range(seeds):
        for family, value in ABLATED:
            for method in ("joint", "multi-loss"):
                text = text_of(chosen.options(family, method))
                yield Job("ablations", family, value, method, "", text, seed)
            for variant, change in ABLATIONS.items():
                text = text_of({**chosen.options(family, "MCR"), **change})
                yield Job("ablations", family, value, "MCR", variant, text, seed)


def available_methods() -> list[str]:
    """All strategies that have tries."""
    return [name for name in STRATEGIES if name in tuning.TRIES]
