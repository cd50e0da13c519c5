"""The search of weights: what it tries, what it keeps, what it says."""

import csv
import math
import subprocess
import sys

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
    assert len(found.trials) <= 13
    assert len({t.weights for t in found.trials}) == len(found.trials)


def test_without_any_gain_the_simplest_is_kept():
    assert tune(lambda weights, seed: 0.5, log=silent).weights == Weights(0, 0, 0)


def test_a_run_that_diverged_is_the_worst():
    def run(weights: Weights, seed: int) -> float:
        return math.nan if weights.kind == "MCR" and seed == 1 else 0.1 * weights.unimodal

    assert tune(run, log=silent).weights == Weights(3.0, 0, 0)


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
        tune(run, path=path, log=silent)
    assert len(path.read_text().splitlines()) == 8
    again: list[tuple[Weights, int]] = []

    def rest(weights: Weights, seed: int) -> float:
        again.append((weights, seed))
        return peaked(at)(weights, seed) + 0.001 * seed

    found = tune(rest, path=path, log=silent)
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
    assert set(found.confirmed) == {"joint", "multi-loss", "MCR"}
    assert found.confirmed["MCR"].scores == pytest.approx((0.67, 0.68, 0.69))
    lines = found.report().splitlines()
    assert lines[-2].endswith(
        "MCR against joint with 3 other seeds: +0.68, standard error 0.0058, better with 3"
    )
    assert "MCR against multi-loss with 3 other seeds: +0.18" in lines[-1]
    assert lines[1].endswith("MCR")


def test_a_report_without_confirmation_warns():
    trial = Trial(Weights(1.0, 0.0, 0.0), (0.5, 0.7))
    assert "flattering" in Tuned(trial.weights, (trial,), {}).report()


def test_weights_make_an_objective():
    objective = Weights(0.3, 0.02, 0.7).objective([4, 4], 3, strategy="independent")
    assert isinstance(objective, mcr_fast.MCRObjective)
    assert objective.unimodal_weight == (0.3, 0.3)
    loss = objective.loss
    assert (loss.mipd_weight, loss.contrastive_weight, loss.strategy) == (0.02, 0.7, "independent")


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ({"run": 3}, TypeError, "run must be callable, got int"),
        ({"run": lambda w, s: "x"}, TypeError, "run must return a number, got 'x'"),
        ({"run": lambda w, s: None}, TypeError, "run must return a number, got None"),
        ({"seeds": (1,)}, ValueError, "two or more"),
        ({"seeds": (1, 1)}, ValueError, "must differ"),
        ({"confirm": (0,)}, ValueError, "must differ"),
    ],
)
def test_bad_input(arguments, error, words):
    with pytest.raises(error, match=words):
        tune(**{"run": lambda w, s: 0.0, "log": silent, **arguments})


def test_a_number_of_torch_is_one():
    assert tune(lambda w, s: torch.tensor(0.5), log=silent).trials[0].scores == (0.5, 0.5)


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n", "unimodal,mipd,contrastive,seed,score\n0,0,x,0,1\n"]
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


def test_the_command(tmp_path):
    (tmp_path / "mine.py").write_text(SCRIPT)
    for name in ("mine.py:run", "mine:run"):
        ran = subprocess.run(
            [sys.executable, "-m", "mcr_fast.tune", name, "--out", f"{name[:-4]}.csv"],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 0, ran.stderr
        assert "multi-loss against joint with 4 other seeds: +1" in ran.stdout
        assert (tmp_path / f"{name[:-4]}.csv").exists()
    for name, words in (("mine", "module:function"), ("mine:nothing", "mine has no nothing")):
        ran = subprocess.run(
            [sys.executable, "-m", "mcr_fast.tune", name],
            cwd=tmp_path, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert ran.returncode == 1
        assert words in ran.stderr
