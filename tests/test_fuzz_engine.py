"""The engine on random fusions, latents and options: `fuzz_engine` has what a case is.

Three hundred seeds on every run, five thousand with `--slow`. A seed that failed goes into NAMED
with a word of what it was; it is that case as long as the grammar draws the same.
"""

import fuzz_cases
import fuzz_engine
import fuzz_oracle
import pytest
import torch
from divergences import on_threads
from oracle import Oracle

# the old weight and spectral norm are in use
pytestmark = [pytest.mark.process("beside"), pytest.mark.filterwarnings("ignore::FutureWarning")]

QUICK = range(0, 300, 50)
SLOW = range(300, 3300, 200)

NAMED = {
    "a penalty on the task's gradient through a linear fusion": 63,
    "another": 784,
    "backward hooks of projections that also see zeros": 1014,
    "backward hooks of projections that also see noise": 9735,
    "a fusion that gives back a frozen input": 9683,
}


def check_all(seeds):
    with on_threads(1):
        failures = [(seed, fuzz_engine.outcome(seed)) for seed in seeds]
    failures = [(seed, failure) for seed, failure in failures if failure is not None]
    if failures:
        seed, (_, text) = failures[0]
        others = [seed for seed, _ in failures[1:]]
        pytest.fail(f"{text}\n{fuzz_engine.describe(seed)}\nseeds that fail too: {others}")


@pytest.mark.parametrize("first", QUICK)
def test_random_cases(first):
    check_all(range(first, first + 50))


@pytest.mark.slow
@pytest.mark.parametrize("first", SLOW)
def test_many_random_cases(first):
    check_all(range(first, first + 200))


@pytest.mark.parametrize("seed", NAMED.values(), ids=NAMED.keys())
def test_what_failed_once(seed):
    check_all([seed])


# The oracle of the fuzz against the one that loops


def games(seed):
    """The arguments and results of the games that a seed's oracle plays."""
    played = []

    class Recorded(Oracle):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            played.append((self, arguments, options))

    case = fuzz_cases.draw(seed)
    case.objective["no_grad"] = True  # no backward, and no hooks that both oracles would meet
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fuzz_oracle, "Oracle", Recorded)
        fuzz_engine.run_oracle(case, torch.float64)
    return played


@pytest.mark.parametrize("seed", range(40))
def test_the_oracle_agrees_with_the_loops(seed):
    for game, (fusion, latents, owned, table, subsets), options in games(seed):
        case = fuzz_cases.draw(seed)
        if table.numel() == 0 or options["replace"] is not None or table.numel() > 20:
            continue
        del options["paths"], options["replace"]
        loops = Oracle(
            lambda rows, fusion=fusion: fusion([x.clone() for x in rows]),
            latents,
            owned,
            table,
            subsets,
            **options,
        )
        torch.testing.assert_close(game.divergences(), loops.divergences(), rtol=1e-9, atol=1e-12)
        routing = case.options["strategy"], case.options["clean_path"]
        torch.testing.assert_close(
            game.gradients(*routing), loops.gradients(*routing), rtol=1e-8, atol=1e-11
        )
