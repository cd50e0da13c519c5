"""The search of weights: what it tries, what it keeps, what it says."""

import csv
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mcr_fast
from mcr_fast.tune import CONTRASTIVE, MIPD, UNIMODAL, Trial, Tuned, Weights, tune


def peaked(at: Weights):
    """A score that is highest at a setting, in the logarithm of each weight; without noise."""

    def run(weights: Weights, seed: int) -> float:
        return -sum(
            math.log((w + 1e-4) / (best + 1e-4)) ** 2 for w, best in zip(weights, at, strict=True)
        )

    return run


def silent(line: str) -> None:
    pass


@pytest.mark.parametrize("unimodal", UNIMODAL)
@pytest.mark.parametrize("mipd", [*MIPD, 0.01])
@pytest.mark.parametrize("contrastive", CONTRASTIVE)
def test_it_finds_a_peak_of_its_grid(unimodal, mipd, contrastive):
    at = Weights(unimodal, mipd, contrastive)
    found = tune(peaked(at), log=silent)
    assert found.weights == at
    assert len(found.trials) <= 15
    assert len({t.weights for t in found.trials}) == len(found.trials)


@pytest.mark.parametrize(
    ("at", "edges"),
    [
        (Weights(1.0, 0.03, 0.3), []),
        (Weights(1.0, 0.0, 1.0), []),
        (Weights(10.0, 0.1, 3.0), ["mipd 0.1", "contrastive 3"]),
    ],
)
def test_an_edge_of_the_grid_is_named(at, edges):
    found = tune(peaked(at), log=silent)
    assert found.weights == at
    assert found.edges() == edges
    assert ("at the edge" in found.report()) == bool(edges)


def test_without_any_gain_the_simplest_is_kept():
    assert tune(lambda weights, seed: 0.5, log=silent).weights == Weights(0, 0, 0)


def test_a_run_that_diverged_is_the_worst():
    def run(weights: Weights, seed: int) -> float:
        return math.nan if weights.kind == "MCR" and seed == 1 else 0.1 * weights.unimodal

    assert tune(run, log=silent).weights == Weights(10.0, 0, 0)


def test_seeds_are_averaged():
    """The second seed prefers another setting, more strongly."""

    def run(weights: Weights, seed: int) -> float:
        return weights.unimodal if seed == 0 else -2 * weights.unimodal

    assert tune(run, log=silent).weights.unimodal < 0.1


def test_an_interrupted_search_goes_on(tmp_path):
    path, at = tmp_path / "kept" / "tune.csv", Weights(0.3, 0.03, 1.0)
    calls: list[tuple[Weights, int]] = []

    def run(weights: Weights, seed: int) -> float:
        if len(calls) == 7:
            raise KeyboardInterrupt
        calls.append((weights, seed))
        return peaked(at)(weights, seed) + 0.001 * seed

    with pytest.raises(KeyboardInterrupt):
        tune(run, path=path, name="mine", log=silent)
    assert len(path.read_text().splitlines()) == 8
    again: list[tuple[Weights, int]] = []

    def rest(weights: Weights, seed: int) -> float:
        again.append((weights, seed))
        return peaked(at)(weights, seed) + 0.001 * seed

    with path.open("a") as file:
        file.write("mine,0.3,0.0")  # a line that a killed process did not finish
    told: list[str] = []
    found = tune(rest, path=path, name="mine", log=told.append)
    assert told[0].startswith("7 runs are taken from")
    assert not set(again) & set(calls)
    whole = tune(lambda w, s: peaked(at)(w, s) + 0.001 * s, log=silent)
    assert found == whole
    with path.open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 2 * len(whole.trials)


def test_what_was_confirmed():
    def run(weights: Weights, seed: int) -> float:
        gain = {"joint": 0.0, "multi-loss": 0.5, "MCR": 0.6}[weights.kind]
        return gain + 0.01 * seed * (weights.kind == "MCR")

    found = tune(run, confirm=(7, 8, 9), log=silent)
    assert found.weights.kind == "MCR"
    assert found.confirmed["MCR"].scores == pytest.approx((0.67, 0.68, 0.69))
    lines = found.report().splitlines()
    assert "MCR minus joint: +0.68, standard error 0.0058, above with 3 of 3 seeds" in lines
    assert "MCR minus multi-loss: +0.18, standard error 0.0058, above with 3 of 3 seeds" in lines
    assert lines[1].endswith("MCR")
    assert lines[-1].endswith(": MCR.")


def test_where_nothing_helps_the_search_flatters_and_confirmation_does_not():
    """docs/tuning.md says so: MCR has most of the settings, so the best of noise is often one."""

    def share_of_mcr(confirm: tuple[int, ...]) -> float:
        kinds = []
        for each in range(100):
            noise = random.Random(each)
            found = tune(lambda w, s, n=noise: n.gauss(0, 1), confirm=confirm, log=silent)
            kinds.append(found.weights.kind)
        return kinds.count("MCR") / len(kinds)

    assert share_of_mcr(()) > 0.5
    assert share_of_mcr((2, 3, 4, 5)) < 0.2


def test_a_gain_within_a_standard_error_is_not_taken():
    """The search finds MCR best; with other seeds it is no more than noise above multi-loss."""

    def run(weights: Weights, seed: int) -> float:
        noise = (0.3, -0.2, 0.1, -0.1)[seed % 4] * (weights.kind == "MCR")
        return {"joint": 0.0, "multi-loss": 0.5, "MCR": 0.5}[weights.kind] + noise

    assert tune(run, seeds=(0, 2), log=silent).weights.kind == "MCR"
    found = tune(run, seeds=(0, 2), confirm=(4, 5, 6, 7), log=silent)
    assert max(found.trials, key=lambda t: t.mean).weights.kind == "MCR"
    assert found.weights.kind == "multi-loss"


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_run_that_diverged_while_confirming(bad):
    def run(weights: Weights, seed: int) -> float:
        if weights.kind == "MCR":
            return bad if seed == 3 else 0.9
        return 0.1 * weights.unimodal

    found = tune(run, confirm=(2, 3), log=silent)
    assert found.weights.kind == "multi-loss"
    assert "MCR minus joint: a run diverged" in found.report()


def test_a_report_without_confirmation_warns():
    trial = Trial(Weights(1.0, 0.0, 0.0), (0.5, 0.7))
    assert "flattering" in Tuned(trial.weights, (trial,), {}).report()


def test_weights_make_an_objective():
    objective = Weights(0.3, 0.02, 0.7).objective([4, 4], 3, strategy="independent")
    assert isinstance(objective, mcr_fast.MCRObjective)
    assert objective.unimodal_weight == (0.3, 0.3)
    loss = objective.loss
    assert (loss.mipd_weight, loss.contrastive_weight, loss.strategy) == (0.02, 0.7, "independent")
    regression = Weights(1.0, 0.1, 0.0).objective([4, 4], 2, task="regression", divergence="mse")
    assert regression.task_loss.task == "regression"


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"run": 3}, TypeError, "run must be callable, got int"),
        ({"run": lambda w, s: "x"}, TypeError, "run must return a number, got 'x'"),
        ({"run": lambda w, s: None}, TypeError, "run must return a number, got None"),
        ({"seeds": (1,)}, ValueError, "two or more"),
        ({"seeds": (1, 1)}, ValueError, "must differ"),
        ({"confirm": (0, 5)}, ValueError, "must differ"),
        ({"confirm": (5,)}, ValueError, "confirm two or more or none"),
        ({"run": lambda w, s: "0.5"}, TypeError, "run must return a number, got '0.5'"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        tune(**{"run": lambda w, s: 0.0, "log": silent, **arguments})


def test_a_number_of_torch_is_one():
    assert tune(lambda w, s: torch.tensor(0.5), log=silent).trials[0].scores == (0.5, 0.5)


HEADER = "run,unimodal,mipd,contrastive,seed,score\n"


@pytest.mark.parametrize(
    "text",
    ["a,b\n1,2\n", f"{HEADER},0,0,x,0,1\n", f"{HEADER},0,0\n", f"{HEADER}other,0,0,0,0,1\n"],
)
def test_another_file_is_not_touched(tmp_path, text):
    path = tmp_path / "x.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"x\.csv"):
        tune(lambda w, s: 0.0, path=path, log=silent)
    assert path.read_text() == text


SCRIPT = """
def run(weights, seed):
    return 1 - abs(weights.unimodal - 1) - 0.1 * (weights.kind == "MCR")
"""


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mcr_fast.tune", *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["random.py:run", "mine:run"])
def test_the_command(tmp_path, name):
    """A file may have the name of a module of Python's."""
    (tmp_path / "mine.py").write_text(SCRIPT)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "random.py").write_text(SCRIPT)
    ran = command(tmp_path, f"other/{name}" if name.startswith("random") else name)
    assert ran.returncode == 0, ran.stderr
    assert "with 4 other seeds, multi-loss: 1\n" in ran.stdout
    assert ran.stdout.endswith("Take unimodal 1, mipd 0, contrastive 0: multi-loss.\n")
    assert (tmp_path / "mcr-tune.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["mine"], "module:function"),
        (["mine.py:nothing"], "mine.py has no nothing"),
        (["absent.py:run"], "there is no file absent.py"),
        (["mine.py:run", "--seeds", "1"], "--seeds must be 2 or more"),
    ],
)
def test_the_command_says_what_is_wrong(tmp_path, arguments, words):
    (tmp_path / "mine.py").write_text(SCRIPT)
    ran = command(tmp_path, *arguments)
    assert ran.returncode != 0
    assert words in ran.stderr
    assert "Traceback" not in ran.stderr
