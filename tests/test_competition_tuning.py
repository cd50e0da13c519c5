"""How examples/competition chooses options, and what it then trains."""

import competition_rows as made
import pytest
import torch

from examples.competition import jobs, records, tuning
from examples.competition.chosen import Chosen, Effort, available_methods
from examples.competition.data import FAMILIES
from examples.competition.rivals import STRATEGIES, find
from examples.competition.training import Setting, data_of, fit, fresh_model, teachers

TWO = Effort(tuning_places=2)


pytestmark = pytest.mark.usefixtures("one_thread")


def tries_of(method: str) -> list[dict]:
    """Both stages, at the weight 3 and the middle rate."""
    return [*tuning.rate_tries(method, 3.0), *tuning.option_tries(method, 3.0, 3e-3)]


def test_every_strategy_has_seven_tries():
    assert set(tuning.TRIES) == set(STRATEGIES) == set(available_methods())
    for method in tuning.TRIES:
        different = {tuning.text_of(options) for options in tries_of(method)}
        assert len(different) == tuning.number_of_tries(method) == 7, method
    assert not set(tuning.SEEDS) & set(range(max(Effort().seeds, Effort().more_seeds)))
    assert set(tuning.RATES) <= set(tuning.MORE_RATES)


@pytest.mark.parametrize("method", list(STRATEGIES))
def test_every_try_is_taken_by_its_strategy(method):
    """A loss with each; an epoch of training with the first, teachers are trained as long."""
    setting = Setting("speed", 1.0, 0)
    data, (first, *others) = data_of(setting), tries_of(method)
    trained = fit(method, first, setting, epochs=1)
    assert 0 <= trained.validation[0] <= 1
    for options in others:
        taken = {name: value for name, value in options.items() if name != "lr"}
        if find(method).needs_teachers:
            taken["teachers"] = teachers((), setting, epochs=1)
        strategy = find(method)(fresh_model(data, 0), **taken)
        strategy.epoch_start(0, data.train)
        assert strategy.loss(data.train.rows(torch.arange(32))).isfinite()


def test_a_seed_gives_every_method_the_same_first_weights():
    data = data_of(Setting("speed", 1.0, 0))
    first, second = fresh_model(data, 3), fresh_model(data, 3)
    assert all(map(torch.equal, first.parameters(), second.parameters()))


@pytest.mark.parametrize("method", ["OGM", "MLB", "MMPareto"])
def test_methods_that_scale_gradients_are_tried_on_learning_rates(method):
    published = 1 if method == "MMPareto" else 0  # its starting options
    assert all(each.get("as_lr") for each in tuning.TRIES[method][published:])


def test_published_and_short_forms_are_among_the_tries():
    assert min(each["warmup"] for each in tuning.TRIES["Remix"]) == 2
    assert min(each["every"] for each in tuning.TRIES["D&R"]) == 4
    assert {"shortcuts": [1], "own_encoder": True} in tuning.TRIES["SFC"]
    changed = tuning.TRIES["ReconBoost"][1:]  # not by the weight of the target alone
    assert all({"others_weight", "stage_epochs"} & set(each) for each in changed)


def test_rates_come_first_and_options_at_the_best_of_them(tmp_path):
    def good(job) -> float:
        options, _ = job.decoded()
        return 0.9 * (options["lr"] == 1e-2) + 0.05 * (options.get("weight") == 3.0)

    methods = ["joint", "multi-loss", "MCR"]
    first = list(jobs.tuning_jobs(["speed"], methods, Chosen(), TWO))
    assert {job.method for job in first} == {"joint", "multi-loss"}  # MCR waits for a weight
    assert len(first) == 2 * (7 + 3)
    made.tune(tmp_path, methods, ["speed"], TWO, good)
    found = made.chosen(tmp_path, TWO)
    assert found.options("speed", "joint") == {"lr": 1e-2}
    assert found.options("speed", "multi-loss") == {"weight": 3.0, "lr": 1e-2}
    mcr = [job.decoded()[0] for job in jobs.tuning_jobs(["speed"], ["MCR"], found, TWO)]
    assert {options["weight"] for options in mcr} == {3.0}
    assert {options["contrastive"] for options in mcr} == {3.0, 1.0, 0.3}
    assert {options["lr"] for options in mcr} == {1e-2}
    assert len(records.rows(tmp_path / "tuning.csv")) == 2 * 7 * len(methods)


def test_a_tie_goes_to_the_earlier_try_whatever_the_order_of_rows(tmp_path):
    made.tune(tmp_path, ["joint", "multi-loss"], ["speed"], TWO)
    rows = records.rows(tmp_path / "tuning.csv")
    for order in (rows, rows[::-1]):
        found = Chosen.of(order, TWO)
        assert found.options("speed", "multi-loss") == {"weight": 1.0, "lr": 1e-3}
        assert found.options("speed", "joint") == {"lr": 3e-4}


def test_only_rows_of_all_places_and_of_these_epochs_choose(tmp_path):
    made.tune(tmp_path, ["joint"], ["speed"], TWO)
    rows = records.rows(tmp_path / "tuning.csv")
    assert Chosen.of(rows, TWO).has("speed", "joint")
    assert not Chosen.of(rows[:-1], TWO).has("speed", "joint")
    assert not Chosen.of(rows, Effort(tuning_places=2, epochs=3)).has("speed", "joint")
    with pytest.raises(ValueError, match="multi-loss"):
        tuning.complete("MCR", {}, None)


def test_teachers_wait_for_the_unimodal_models_and_their_options_count(tmp_path):
    assert not list(jobs.tuning_jobs(["speed"], ["UMT"], Chosen(), TWO))
    made.tune(tmp_path, ["unimodal", "UMT"], ["speed"], TWO)
    found = made.chosen(tmp_path, TWO)
    row = made.row(jobs.final("speed", 1.0, "UMT", 0, found, 40))
    assert row["teacher"] == '{"lr": 0.001}'
    assert found.count(row)
    assert not found.count({**row, "teacher": '{"lr": 0.003}'})


def test_places_of_tuning_go_from_the_first_setting_to_the_last():
    assert tuning.places((1.0, 0.1, 0.05, 0.02), 2) == [(1.0, 100), (0.02, 101)]
    assert tuning.places((1.0, 0.1, 0.05), 3) == [(1.0, 100), (0.1, 101), (0.05, 102)]
    assert tuning.places((1.5,), 2) == [(1.5, 100), (1.5, 101)]
    assert tuning.places((1.0, 0.1), 1) == [(1.0, 100)]


def test_the_plan_counts_what_is_trained(tmp_path):
    """Without the trainings of teachers, as none of these methods has any."""
    effort = Effort(seeds=2, more_seeds=3, epochs=2, tuning_places=1)
    methods = ["joint", "multi-loss", "OPM", "MCR"]
    experiments = ["speed", "digits", "ablations"]
    planned = jobs.planned(experiments, ["speed", "digits"], methods, effort)
    made.tune(tmp_path, methods, ["speed", "digits"], effort)
    assert planned["tuning"] == len(records.rows(tmp_path / "tuning.csv"))
    found = made.chosen(tmp_path, effort)
    for family in ("speed", "digits"):
        assert planned[family] == len(list(jobs.final_jobs(family, methods, found, effort)))
    assert planned["speed"] == 4 * (3 * 3 + 2)
    ablated = list(jobs.ablation_jobs(found, effort))
    of_main = [job for job in ablated if job.experiment != "ablations"]
    assert planned["ablations"] == len(ablated) - len(of_main)
    alone = jobs.planned(["ablations"], ["speed", "digits"], ["joint"], effort)
    assert alone["ablations"] == len(ablated)
    finals = set(jobs.final_jobs("speed", methods, found, effort))
    assert {job for job in of_main if job.family == "speed"} <= finals  # not trained twice


def test_what_others_take_is_tuned_too_in_any_order():
    assert jobs.with_needed(["MCR", "UMT"]) == ["unimodal", "multi-loss", "UMT", "MCR"]
    assert jobs.with_needed(["OPM", "joint"]) == ["joint", "OPM"]


def test_noise_takes_the_choice_of_the_digits(tmp_path):
    made.tune(tmp_path, ["joint"], ["digits"], TWO)
    found = made.chosen(tmp_path, TWO)
    assert found.options("noise", "joint") == found.options("digits", "joint")
    assert FAMILIES["noise"].tuned_on == "digits"
