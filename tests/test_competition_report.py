"""What the pages of examples/competition say of given rows."""

import csv
import math
import shutil

import competition_rows as made
import numpy as np
import pytest
from scipy import stats

from examples.competition import intervals, outcomes, protocol, records, report, sentences
from examples.competition.data import FAMILIES
from examples.competition.jobs import ABLATIONS

METHODS = ["joint", "unimodal", "multi-loss", "OPM", "MCR"]


def test_an_interval_is_that_of_scipy():
    first = dict(enumerate([91.0, 92.5, 90.0, 93.0, 91.7]))
    second = dict(enumerate([90.0, 91.0, 90.5, 91.0, 90.1]))
    found = intervals.paired(first, second)
    test = stats.ttest_rel(list(first.values()), list(second.values()))
    expected = test.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert found.p == pytest.approx(test.pvalue)
    assert found.seeds == 5
    assert intervals.paired(first | {9: 0.0}, second | {7: 0.0}) == found  # seeds that both have
    assert not intervals.paired({0: 1.0}, {0: 2.0}).measured


def test_holm_multiplies_step_by_step():
    found = intervals.holm([0.01, 0.04, math.nan, 0.03, 0.005])
    assert found[:2] + found[3:] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert math.isnan(found[2])
    assert intervals.holm([]) == []
    assert intervals.holm([0.9, 0.8]) == [1.0, 1.0]


def test_ranks_share_equal_places_and_have_intervals():
    line, other = {"a": 3.0, "b": 2.0, "c": 2.0}, {"a": 1.0, "b": 2.0, "c": 3.0}
    found = intervals.ranks({0: [line], 1: [other]})
    assert {name: rank.mean for name, rank in found.items()} == {"a": 2.0, "b": 2.25, "c": 1.75}
    assert (found["a"].low, found["a"].high) == (1.0, 3.0)
    assert all(rank.top for rank in found.values())  # two seeds tell nothing apart
    same = intervals.ranks({seed: [{"a": 3.0, "b": 1.0}] for seed in range(5)})
    assert (same["a"].top, same["b"].top) == (True, False)
    assert (same["b"].low, same["b"].high) == (2.0, 2.0)
    assert intervals.ranks({}) == {}


def test_a_family_is_averaged_by_seed():
    parts = [{0: 1.0, 1: 2.0, 2: 9.0}, {0: 3.0, 1: 6.0}]
    assert intervals.averaged(parts) == {0: 2.0, 1: 4.0}
    assert intervals.averaged([]) == {}


@pytest.fixture
def results(tmp_path):
    """Joint 80, MCR 84 and OPM 86 with a spread over seeds, on two settings of the speed sweep."""
    made.tune(tmp_path)
    for value in (0.1, 0.05):
        place = ("speed", value)
        for seed in range(4):
            noise = 0.01 * seed
            made.add(tmp_path, place, "joint", seed, 0.8 + noise + 0.002 * (seed % 2))
            made.add(tmp_path, place, "multi-loss", seed, 0.835 + noise + 0.001 * (seed % 3))
            made.add(tmp_path, place, "MCR", seed, 0.84 + noise)
            made.add(tmp_path, place, "OPM", seed, 0.86 + noise + 0.001 * (seed % 2))
            alone = (0.82 + noise - 0.002 * (seed % 2), 0.4)
            made.add(tmp_path, place, "unimodal", seed, 0.83 + noise, alone)
    return tmp_path


def contents(folder):
    return report.contents(made.load(folder), folder)


def test_the_report_says_what_the_rows_say(results):
    found = contents(results)
    joint = next(x for x in found["speed_differences"]().splitlines() if x.startswith("| joint"))
    assert joint.count("+3.9 ± 0.2") == 2
    line = next(x for x in found["speed"]().splitlines() if x.startswith("| MCR"))
    assert [cell.strip() for cell in line.split("|")[2:4]] == ["85.5", "85.5"]
    alone = next(x for x in found["speed"]().splitlines() if "better modality alone" in x)
    assert alone.split("|")[2].strip() == "83.4"
    assert made.load(results).ranks["OPM"].mean == 1.0
    assert "| **OPM** " in found["ranks"]()
    assert "| MCR " in found["ranks"]()
    assert found["digits"]() == "Not measured yet."
    assert "4 seeds (0 to 3), 2 epochs" in found["speed"]()


def test_better_than_mcr_counts_intervals_and_marks_those_that_survive(results):
    better = contents(results)["better"]()
    assert better.startswith("8 intervals were looked at, of which 2 lie above 0; were there no")
    assert "0 would. 2 survive" in better
    assert "- **OPM**: Speed sweep (synthetic), s = 0.1: +2.0 ± 0.1 (H); " in better
    assert "- ensemble of unimodal models: nowhere beyond its interval." in better


def test_tables_are_of_the_seeds_that_all_methods_have(results):
    made.add(results, ("speed", 0.1), "joint", 9, 0.1)
    made.add(results, ("speed", 0.1), "MCR", 9, 0.9)
    found = contents(results)
    line = next(x for x in found["speed"]().splitlines() if x.startswith("| joint"))
    assert [cell.strip() for cell in line.split("|")[2:4]] == ["81.6", "81.6"]
    assert "4 seeds (0 to 3)" in found["speed"]()
    joint = next(x for x in found["speed_differences"]().splitlines() if x.startswith("| joint"))
    assert joint.split("|")[-2].strip() == "4 or 5"
    assert outcomes.seeds_in_words([0, 2]) == "2 seeds (0, 2)"


def test_primary_contrasts_are_of_whole_families(results):
    assert contents(results)["primary"]() == "Not measured yet."  # two of four settings
    for value in (1.0, 0.02):
        for seed in range(4):
            for method, test in (("joint", 0.8), ("MCR", 0.81)):
                shift = 0.001 * (seed % 2) * (method == "MCR")
                made.add(results, ("speed", value), method, seed, test + shift)
    (family, other, found, p), *rest = sentences.contrasts(made.load(results))
    assert (family, other, rest) == ("speed", "joint", [])
    assert found.mean == pytest.approx((2 * 3.9 + 2 * 1.05) / 4)
    assert p == found.p  # of one contrast
    text = contents(results)["primary"]()
    assert "corrected by Holm for the 1 contrasts" in text
    assert "which holds after Holm's correction" in contents(results)["expectations"]()


def test_goals_are_missed_or_not_measured_and_never_reached_without_figures(results):
    goal = contents(results)["goals"]().splitlines()
    assert (
        "so far reached (s = 0.1: +3.9 ± 0.2; s = 0.05: +3.9 ± 0.2); not measured at s = 0.02"
        in goal[2]
    )
    assert goal[3].split("|")[2].strip() == "not measured"
    assert "so far reached; worst mean +0.4 ± 0.2 (Speed" in goal[4]
    assert "lowest end +0.3 (Speed" in goal[4]
    assert "not measured: 12 of 16" in goal[4]
    for seed in range(4):
        made.add(results, ("speed", 0.02), "joint", seed, 0.9 + 0.01 * seed)
        made.add(results, ("speed", 0.02), "MCR", seed, 0.8 + 0.011 * seed)
    goal = contents(results)["goals"]().splitlines()
    assert "**missed** at s = 0.02: -9.9 ± 0.2 (reached at s = 0.1" in goal[2]
    assert "**missed**; worst mean -9.9 ± 0.2" in goal[4]


def test_one_seed_is_not_measured(tmp_path):
    made.tune(tmp_path)
    for method in METHODS:
        made.add(tmp_path, ("speed", 0.1), method, 0, 0.9, (0.8, 0.4) * (method == "unimodal"))
    found = contents(tmp_path)
    assert "reached" not in found["goals"]()
    assert found["better"]() == "Not measured yet."


def test_a_lost_sensor_has_paired_intervals(results):
    found = contents(results)["speed_lost"]()
    joint = next(x for x in found.splitlines() if x.startswith("| joint"))
    assert joint.split("|")[2].strip() == "40.8 (+1.9 ± 0.1)"
    mcr = next(x for x in found.splitlines() if x.startswith("| MCR"))
    assert mcr.split("|")[2].strip() == "42.8"


def test_words_of_an_interval_claim_no_more_than_it_does():
    assert sentences.word_of(intervals.Interval(1, 0.5), "x") == "above x"
    assert sentences.word_of(intervals.Interval(-1, 0.5), "x") == "below x"
    assert sentences.word_of(intervals.Interval(1, 1.5), "x") == "no clear difference to x"


def test_rows_of_other_commits_stay_and_are_named(results):
    path = results / "speed.csv"
    rows = records.rows(path)
    rows[0]["commit"] = "0123456789ab"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, records.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    text = contents(results)["speed"]()
    assert "0123456789ab" in text
    assert "rows of more than one commit" in text


def test_only_rows_of_what_is_chosen_count(results):
    """Of other options, another teacher's or other epochs: as if they were not there."""
    path, place = results / "speed.csv", ("speed", 0.1)
    made.add(results, place, "UMT", 0, 0.9)
    row = records.rows(path)[-1]
    assert made.load(results).figures(place, "UMT") == {0: 90.0}
    for column, text in (("options", "{}"), ("teacher", '{"lr": 7}'), ("epochs", "9")):
        records.append(path, {**row, column: text, "seed": "1"})
    assert made.load(results).figures(place, "UMT") == {0: 90.0}
    rows = [r for r in records.rows(results / "tuning.csv") if r["method"] != "OPM"]
    (results / "tuning.csv").unlink()
    for each in rows:
        records.append(results / "tuning.csv", each)
    assert made.load(results).figures(place, "OPM") == {}  # nothing is chosen


def test_ablations_take_the_main_result_for_the_chosen_one(results):
    found = made.load(results)
    chosen = made.chosen(results)
    place = ("speed", 0.05)
    assert found.variant(place, "as chosen") == found.figures(place, "MCR")
    for job in made.jobs.ablation_jobs(chosen, made.EFFORT):
        if job.experiment == "ablations" and (job.family, job.value) == place:
            records.append(results / "ablations.csv", made.row(job, 0.7 + 0.01 * job.seed))
    text = contents(results)["ablations"]().splitlines()
    assert [x.strip() for x in text[2].split("|")[1:4]] == ["as chosen", "85.5", ""]
    assert [x.strip() for x in text[3].split("|")[1:4]] == ["independent", "71.5", "-14.0 ± 0.0"]
    assert sum(line.startswith("| ") for line in text) == 1 + len(ABLATIONS)


def test_trainings_whose_best_epoch_lies_in_a_warm_up_are_counted(results):
    path = results / "speed.csv"
    rows = records.rows(path)
    path.unlink()
    for row in rows:
        late = row["method"] == "OPM" and row["seed"] == "0"
        records.append(path, {**row, "best_epoch": "4", "first_epoch": "5" if late else "0"})
    line = next(x for x in contents(results)["ranks"]().splitlines() if "**OPM**" in x)
    assert line.split("|")[4].strip() == "25"


def test_a_page_says_at_its_top_that_the_sweeps_have_not_been_run(results):
    assert "have not been run in full" in protocol.state(made.load(results))
    assert "Not complete" in protocol.text(made.load(results))
    empty = outcomes.Outcomes({}, made.Chosen(), made.EFFORT)
    assert "Nothing is measured yet" in protocol.text(empty)


def test_all_rows_make_the_pages_complete(tmp_path, monkeypatch):
    made.tune(tmp_path, effort=made.EFFORT)
    random = np.random.default_rng(0)
    for family in FAMILIES:
        final = made.jobs.final_jobs(
            family, made.available_methods(), made.chosen(tmp_path), made.EFFORT
        )
        rows = []
        for job in final:
            alone = (0.7, 0.6) if job.method == "unimodal" else ()
            rows.append(made.row(job, 0.8 + 0.05 * random.random(), alone=alone))
        records.write(tmp_path / f"{family}.csv", rows, records.COLUMNS)
    found = made.load(tmp_path)
    assert found.complete()
    assert "Every method was run" in protocol.state(found)
    assert protocol.missing(found) == ""
    written = {path.name for path in report.figures.draw_all(found, tmp_path / "figures")}
    assert {"gains.png", "ranks.png", "speed.png", "digits.png", "figure1.png"} <= written
    of_pages = report.contents(found, tmp_path)
    for name in ("claims", "primary", "signs", "null_sentences", "last_epoch", "choices"):
        assert "Not measured yet" not in of_pages[name](), name


def test_the_pages_are_filled(results, tmp_path):
    pages = tuple(tmp_path / page.name for page in report.PAGES)
    for page, copy in zip(report.PAGES, pages, strict=True):
        shutil.copy(page, copy)
    found = made.load(results)
    count = report.write(found, results, pages, tmp_path / "figures")
    assert count == sum(page.read_text().count("bench:begin") for page in pages) > 15
    for name in ("speed", "ranks", "gains"):
        assert (tmp_path / "figures" / f"{name}.png").exists()
    assert "+3.9 ± 0.2" in pages[1].read_text()
    first = [page.read_text() for page in pages]
    report.write(found, results, pages, tmp_path / "figures")
    assert [page.read_text() for page in pages] == first


def test_the_committed_pages_are_those_of_the_committed_rows(tmp_path):
    pages = tuple(tmp_path / page.name for page in report.PAGES)
    for page, copy in zip(report.PAGES, pages, strict=True):
        shutil.copy(page, copy)
    found = outcomes.load(records.RESULTS)
    report.write(found, records.RESULTS, pages, tmp_path / "figures")
    for page, copy in zip(report.PAGES, pages, strict=True):
        assert copy.read_text() == page.read_text(), f"{page.name}: run the report"
