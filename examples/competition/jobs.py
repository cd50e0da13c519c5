"""What the experiments consist of: trainings, each with a name that a rerun knows it by."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from . import tuning
from .chosen import Chosen, Effort, tuned_on
from .data import FAMILIES
from .rivals import find
from .tuning import Options, text_of

EXPERIMENTS = (*FAMILIES, "ablations")
ABLATED = (("speed", 0.05), ("digits", 0.05))
AS_CHOSEN = "as chosen"

# Changes of the chosen MCR. "As chosen" is the main result's row, as is any that changes nothing.
ABLATIONS: dict[str, Options] = {
    AS_CHOSEN: {},
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
KEY = ("family", "value", "method", "variant", "options", "seed", "teacher", "epochs")


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
    teacher: str  # options of the unimodal models, JSON
    epochs: int

    @property
    def key(self) -> tuple[str, ...]:
        """The cells that tell rows of a file apart."""
        cells = (self.family, f"{self.value:g}", self.method, self.variant, self.options)
        return (*cells, str(self.seed), self.teacher, str(self.epochs))

    def decoded(self) -> tuple[Options, Options]:
        """The options and those of the unimodal models."""
        return json.loads(self.options), json.loads(self.teacher)


def tuning_jobs(
    families: Iterable[str], methods: Iterable[str], chosen: Chosen, effort: Effort
) -> Iterator[Job]:
    """All tries that can be made at this stage: the second one once the first one has chosen."""
    methods = list(methods)
    for family in dict.fromkeys(map(tuned_on, families)):
        for method in methods:
            teacher = chosen.teacher(family, method)
            if teacher is None:
                continue
            for options in chosen.tries(family, method, effort):
                for value, seed in effort.places(family):
                    text = text_of(options)
                    yield Job(
                        "tuning", family, value, method, "", text, seed, teacher, effort.epochs
                    )


def final(family: str, value: float, method: str, seed: int, chosen: Chosen, epochs: int) -> Job:
    """A method with its chosen options."""
    options, teacher = text_of(chosen.options(family, method)), chosen.teacher(family, method)
    assert teacher is not None  # nothing is chosen before the unimodal models are
    return Job(family, family, value, method, "", options, seed, teacher, epochs)


def final_jobs(
    family: str, methods: Iterable[str], chosen: Chosen, effort: Effort
) -> Iterator[Job]:
    """Every method that has chosen, seed by seed."""
    there = [method for method in methods if chosen.has(family, method)]
    for seed in range(max(effort.seeds, effort.more_seeds)):
        for value in FAMILIES[family].values:
            for method in there:
                if seed < effort.seeds_of(family, method):
                    yield final(family, value, method, seed, chosen, effort.epochs)


def variant_options(family: str, variant: str, chosen: Chosen) -> Options:
    """Those of the chosen MCR, with the change."""
    return {**chosen.options(family, "MCR"), **ABLATIONS[variant]}


def changes(family: str, variant: str, chosen: Chosen) -> bool:
    """Whether a variant is another training than the chosen MCR."""
    return variant_options(family, variant, chosen) != chosen.options(family, "MCR")


def ablation_jobs(chosen: Chosen, effort: Effort) -> Iterator[Job]:
    """Every variant of MCR; the chosen one is a row of the main result."""
    for seed in range(effort.seeds):
        for family, value in ABLATED:
            if not chosen.has(family, "MCR"):
                continue
            yield final(family, value, "MCR", seed, chosen, effort.epochs)
            for variant in ABLATIONS:
                if changes(family, variant, chosen):
                    text = text_of(variant_options(family, variant, chosen))
                    cells = ("MCR", variant, text, seed, "{}", effort.epochs)
                    yield Job("ablations", family, value, *cells)


def planned(
    experiments: Iterable[str], families: Iterable[str], methods: Iterable[str], effort: Effort
) -> dict[str, int]:
    """Trainings of each experiment if nothing was done before, those of teachers included."""
    families, methods = list(families), list(methods)
    ablated = "ablations" in experiments
    tuned = with_needed([*methods, *["MCR"] * ablated])
    places = sum(len(effort.places(family)) for family in dict.fromkeys(map(tuned_on, families)))
    teachers = any(find(method).needs_teachers for method in methods)
    found = {"tuning": places * (sum(map(effort.number_of_tries, tuned)) + teachers)}
    for family in families:
        if family in experiments:
            seeds = sum(effort.seeds_of(family, method) for method in methods)
            found[family] = len(FAMILIES[family].values) * (seeds + effort.seeds * teachers)
    if ablated:
        of_main = sum(f not in experiments or "MCR" not in methods for f, _ in ABLATED)
        variants = len(ABLATED) * (len(ABLATIONS) - 1)
        found["ablations"] = effort.seeds * (variants + of_main)
    return found


def with_needed(methods: Iterable[str]) -> list[str]:
    """In the order of the tables, with those whose choices others take."""
    found = set(methods)
    found |= {"multi-loss" for method in methods if method in tuning.HEIR}
    found |= {"unimodal" for method in methods if find(method).needs_teachers}
    return [method for method in tuning.TRIES if method in found]
