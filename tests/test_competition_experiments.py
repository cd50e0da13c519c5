"""The experiments of examples/competition: data, tuning, resuming, intervals, the report."""

import csv
import math
import shutil

import pytest
import torch
from divergences import on_threads
from scipy import stats

from examples.competition import intervals, jobs, outcomes, records, report, run, tuning
from examples.competition.data import FAMILIES, MissingPackage, base
from examples.competition.jobs import Chosen, Effort, Job
from examples.competition.rivals import STRATEGIES, find
from examples.competition.training import Scores, Setting, data_of, fit, fresh_model, teachers

ALL_OF_THEM = [(name, value) for name, family in FAMILIES.items() for value in family.values]


@pytest.fixture(autouse=True, scope="module")
def _one_thread():
    with on_threads(1):
        yield


def load(family: str, value: float, seed: int = 0):
    try:
        return FAMILIES[family].load(value, seed)
    except MissingPackage as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("family", "value"), ALL_OF_THEM)
def test_a_seed_redraws_rows_and_nothing_is_in_two_splits(family, value):
    data, again, other = load(family, value), load(family, value), load(family, value, 1)
    for split in ("train", "validation", "test"):
        rows = getattr(data, split)
        assert len(rows.inputs) == 2
        assert all(x.shape[0] == len(rows) > 100 for x in rows.inputs)
        assert all(x.dtype == torch.float32 and x.isfinite().all() for x in rows.inputs)
        assert rows.labels.dtype == torch.int64
        assert set(rows.labels.tolist()) == set(range(data.classes))
        for m, x in enumerate(rows.inputs):
            assert torch.equal(x, getattr(again, split).inputs[m])
            assert not torch.equal(x, getattr(other, split).inputs[m])
    pairs = [torch.cat(rows.inputs, dim=1) for rows in (data.train, data.validation, data.test)]
    rows = torch.cat(pairs)
    if family not in ("uci", "htad"):  # these have equal rows
        assert len(torch.unique(rows, dim=0)) == len(rows)
    assert len(data.train) // FAMILIES[family].batch_size == 8


@pytest.mark.parametrize(("family", "modality"), [("speed", 0), ("digits", 1)])
def test_only_one_view_is_scaled(family, modality):
    plain, scaled = load(family, 1.0), load(family, 0.05)
    for rows, small in ((plain.train, scaled.train), (plain.test, scaled.test)):
        assert torch.equal(rows.labels, small.labels)
        torch.testing.assert_close(small.inputs[modality], 0.05 * rows.inputs[modality])
        torch.testing.assert_close(small.inputs[1 - modality], rows.inputs[1 - modality])


def test_views_of_digits_are_standardized_by_the_training_rows():
    audio = load("digits", 1.0).train.inputs[1]
    torch.testing.assert_close(audio.mean(0), torch.zeros(audio.shape[1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(audio.std(0), torch.ones(audio.shape[1]), rtol=0.01, atol=0)


def test_the_second_view_of_figure_1_knows_less_the_more_is_unique():
    """By the distance of the classes' means over the noise, in each view."""

    def separation(value: float, modality: int) -> float:
        rows = load("figure1", value).test
        x = rows.inputs[modality]
        means = torch.stack([x[rows.labels == c].mean(0) for c in range(8)])
        within = (x - means[rows.labels]).var(0).sum()
        return (means.var(0).sum() / within).item()

    first = [separation(value, 0) for value in FAMILIES["figure1"].values]
    second = [separation(value, 1) for value in FAMILIES["figure1"].values]
    assert max(first) - min(first) < 1e-5
    assert second == sorted(second, reverse=True)
    assert second[0] > 3 * second[-1]


def test_a_missing_package_is_named_with_the_command():
    with pytest.raises(MissingPackage, match="pip install --no-deps no_such_package_at_all"):
        base.package_file("no_such_package_at_all", "data.csv")
    with pytest.raises(MissingPackage, match="--no-deps pytest"):
        base.package_file("pytest", "no-such-file.csv")


def test_an_interval_is_that_of_scipy():
    first = dict(enumerate([91.0, 92.5, 90.0, 93.0, 91.7]))
    second = dict(enumerate([90.0, 91.0, 90.5, 91.0, 90.1]))
    found = intervals.paired(first, second)
    test = stats.ttest_rel(list(first.values()), list(second.values()))
    expected = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert intervals.paired(first | {9: 0.0}, second | {7: 0.0}) == found  # seeds that both have
    assert math.isnan(intervals.paired({0: 1.0}, {0: 2.0}).mean)


def test_ranks_share_equal_places():
    table = [{"a": 3.0, "b": 2.0, "c": 2.0}, {"a": 1.0, "b": 2.0, "c": 3.0}]
    assert intervals.ranks(table) == {"a": 2.0, "b": 2.25, "c": 1.75}
    assert intervals.ranks([]) == {}


def test_every_strategy_has_tries_and_none_has_more_than_joint_training():
    assert set(tuning.TRIES) == set(STRATEGIES) | {"frozen"}
    for method, options in tuning.TRIES.items():
        assert len(options) <= len(tuning.TRIES["joint"]) == 5, method
        assert len({tuning.text_of(each) for each in options}) == len(options), method
    assert not set(tuning.SEEDS) & set(range(Effort().seeds))


@pytest.mark.parametrize("method", list(STRATEGIES))
def test_every_try_is_taken_by_its_strategy(method):
    """A loss with each; an epoch of training with the first, teachers are trained as long."""
    pytest.importorskip(f"examples.competition.rivals.{STRATEGIES[method][0]}")
    setting = Setting("speed", 1.0, 0)
    data, (first, *others) = data_of(setting), tuning.TRIES[method]
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


def tuned(family: str, method: str, options: dict, seed: int, validation: float) -> dict[str, str]:
    job = Job("tuning", family, 1.0, method, "", tuning.text_of(options), seed)
    scores = Scores(0.5, 0.5, validation, 1, (0.1, 0.2), (), 1.0)
    return records.row_of(job, scores, 2, records.environment())


def test_the_best_mean_validation_accuracy_is_chosen():
    """Joint training's rate first; others are tried at that rate, and other tries do not count."""
    rows = [
        tuned("speed", "joint", {"lr": 1e-3}, 100, 0.7),
        tuned("speed", "joint", {"lr": 1e-3}, 101, 0.7),
        tuned("speed", "joint", {"lr": 5e-3}, 100, 0.9),
        tuned("speed", "joint", {"lr": 5e-3}, 101, 0.6),
        tuned("speed", "multi-loss", {"weight": 1.0, "lr": 1e-3}, 100, 0.95),
        tuned("speed", "multi-loss", {"weight": 3.0, "lr": 5e-3}, 100, 0.8),
        tuned("speed", "multi-loss", {"weight": 0.1, "lr": 5e-3}, 100, 0.7),
        tuned("speed", "multi-loss", {"weight": 77.0, "lr": 5e-3}, 100, 0.99),
    ]
    chosen = Chosen.of(rows, ["joint", "multi-loss"])
    assert chosen.options("speed", "joint") == {"lr": 5e-3}
    assert chosen.options("speed", "multi-loss") == {"weight": 3.0, "lr": 5e-3}
    waiting = list(jobs.tuning_jobs(["speed"], ["multi-loss"], Chosen.of([], []), Effort()))
    assert waiting == []
    ready = list(jobs.tuning_jobs(["speed"], ["multi-loss"], chosen, Effort()))
    assert len(ready) == 5 * len(FAMILIES["speed"].values)
    assert {job.decoded()[0]["lr"] for job in ready} == {5e-3}
    assert len({job.seed for job in ready}) == len({job.value for job in ready})


def wanted() -> list[Job]:
    return [
        Job("speed", "speed", value, method, "", "{}", seed)
        for seed in range(2)
        for value in (1.0, 0.1)
        for method in ("joint", "multi-loss")
    ]


def without_clock(folder) -> list[dict[str, str]]:
    rows = records.rows(folder / "speed.csv")
    return sorted(
        ({k: v for k, v in row.items() if k not in ("step_ms", "date", "load")} for row in rows),
        key=lambda row: [row[column] for column in records.KEY],
    )


def test_a_stopped_run_is_taken_up(tmp_path, monkeypatch):
    """Rows are there as far as it came; a rerun adds the others only, and all is as without it."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run.execute(wanted(), whole, 1, 1, "whole")
    once, done = run.run_job, []

    def stops(job, epochs):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(job)
        return once(job, epochs)

    monkeypatch.setattr(run, "run_job", stops)
    with pytest.raises(KeyboardInterrupt):
        run.execute(wanted(), stopped, 1, 1, "stopped")
    assert len(records.rows(stopped / "speed.csv")) == 3
    with (stopped / "speed.csv").open("a") as file:
        file.write("speed,speed,1,jo")  # a line that was not written to its end
    records.repair(stopped / "speed.csv")
    first = records.rows(stopped / "speed.csv")
    done.clear()
    monkeypatch.setattr(run, "run_job", lambda job, epochs: done.append(job) or once(job, epochs))
    run.execute(wanted(), stopped, 1, 1, "taken up")
    assert len(done) == 5
    assert records.rows(stopped / "speed.csv")[:3] == first
    assert without_clock(stopped) == without_clock(whole)
    run.execute(wanted(), stopped, 1, 1, "again")
    assert len(done) == 5


def final(family: str, value: float, method: str, seed: int, test: float, alone=()):
    job = Job(family, family, value, method, "", "{}", seed)
    scores = Scores(test, test - 0.01, test, 1, (0.25, 0.75), alone, 1.0)
    return records.row_of(job, scores, 2, records.environment())


@pytest.fixture
def results(tmp_path):
    """Joint 80, MCR 84 and OPM 86 with a spread over seeds, on two settings of the speed sweep."""
    for value in (0.1, 0.05):
        for seed in range(4):
            noise = 0.01 * seed
            for method, test in (("joint", 0.8), ("multi-loss", 0.835), ("MCR", 0.84)):
                spread = 0.002 * (seed % 2) if method == "joint" else 0.0
                row = final("speed", value, method, seed, test + noise + spread)
                records.append(tmp_path / "speed.csv", row)
            better = 0.86 + noise + 0.001 * (seed % 2)
            records.append(tmp_path / "speed.csv", final("speed", value, "OPM", seed, better))
            row = final("speed", value, "unimodal", seed, 0.83 + noise, (0.82 + noise, 0.4))
            records.append(tmp_path / "speed.csv", row)
    return tmp_path


def test_the_report_says_what_the_rows_say(results, tmp_path):
    found = report.contents(outcomes.load(results), results)
    assert "MCR minus" in found["speed_differences"]()
    joint = next(x for x in found["speed_differences"]().splitlines() if x.startswith("| joint"))
    assert joint.count("+3.9 ± 0.2") == 2
    line = next(x for x in found["speed"]().splitlines() if x.startswith("| MCR"))
    assert line.split("|")[2:4] == ["      85.5 ", "       85.5 "]
    alone = next(x for x in found["speed"]().splitlines() if "better modality alone" in x)
    assert alone.split("|")[2:4] == ["      83.5 ", "       83.5 "]
    assert "MCR" in found["ranks"]()
    assert outcomes.load(results).ranks()["OPM"] == 1.0
    better = found["better"]()
    assert "- **OPM**: " in better
    assert "s = 0.1: +2.0" in better
    assert "- ensemble of unimodal models: nowhere beyond its interval." in better
    goal = found["goals"]().splitlines()
    assert "reached (s = 0.1: +3.9 ± 0.2; s = 0.05: +3.9 ± 0.2)" in goal[2]
    assert "not measured yet" in goal[3]
    assert found["digits"]() == "Not measured yet."
    assert "4 seeds, 2 epochs" in found["speed"]()


def test_a_missed_goal_is_called_missed(results):
    for seed in range(4):
        row = final("speed", 0.02, "joint", seed, 0.9 + 0.01 * seed)
        records.append(results / "speed.csv", row)
        row = final("speed", 0.02, "MCR", seed, 0.8 + 0.011 * seed)
        records.append(results / "speed.csv", row)
    goals = report.contents(outcomes.load(results), results)["goals"]()
    assert "**missed** at s = 0.02: -9.9 ± 0.2 (reached at s = 0.1" in goals


def test_rows_of_other_commits_stay_and_are_named(results):
    path = results / "speed.csv"
    rows = records.rows(path)
    rows[0]["commit"] = "0123456789ab"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, records.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = report.contents(outcomes.load(results), results)["speed"]()
    assert "0123456789ab" in text
    assert "rows of more than one commit" in text


def test_rows_of_options_that_are_not_chosen_do_not_count(results):
    records.append(results / "tuning.csv", tuned("speed", "joint", {"lr": 1e-3}, 100, 0.7))
    found = outcomes.load(results)
    assert found.figures(("speed", 0.1), "joint") == {}
    assert len(found.figures(("speed", 0.1), "MCR")) == 4


def test_the_pages_are_filled(results, tmp_path):
    pages = tuple(tmp_path / page.name for page in report.PAGES)
    for page, copy in zip(report.PAGES, pages, strict=True):
        shutil.copy(page, copy)
    count = report.write(results, pages, tmp_path / "figures")
    assert count == sum(page.read_text().count("bench:begin") for page in pages) > 15
    assert (tmp_path / "figures" / "speed.png").exists()
    assert (tmp_path / "figures" / "ranks.png").exists()
    assert "+3.9 ± 0.2" in pages[1].read_text()
    first = [page.read_text() for page in pages]
    report.write(results, pages, tmp_path / "figures")
    assert [page.read_text() for page in pages] == first


@pytest.mark.slow
def test_a_quick_run_and_its_report(tmp_path):
    """The sweep, from tuning to pages, twice: the second time nothing is left to do."""
    assert run.run(["speed"], list(run.QUICK_METHODS), tmp_path, Effort.quick(), 2) == 0
    rows = records.rows(tmp_path / "speed.csv")
    assert len(rows) == 4 * len(run.QUICK_METHODS) * Effort.quick().seeds
    before = (tmp_path / "speed.csv").read_bytes()
    assert run.run(["speed"], list(run.QUICK_METHODS), tmp_path, Effort.quick(), 2) == 0
    assert (tmp_path / "speed.csv").read_bytes() == before
    text = report.contents(outcomes.load(tmp_path), tmp_path)["speed"]()
    assert "2 seeds, 3 epochs" in text
