"""Runs of examples/competition: stopped and taken up, failing, done anew; the step times."""

import csv

import competition_rows as made
import pytest

from examples.competition import execute, records, run, timing
from examples.competition.__main__ import main
from examples.competition.chosen import Effort
from examples.competition.jobs import Job

pytestmark = [pytest.mark.process("beside"), pytest.mark.usefixtures("one_thread")]


def wanted() -> list[Job]:
    return [
        Job("speed", "speed", value, method, "", "{}", seed, "{}", 1)
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
    assert execute.execute(wanted(), whole, 1, "whole") == []
    once, done = execute.run_job, []

    def stops(job):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(job)
        return once(job)

    monkeypatch.setattr(execute, "run_job", stops)
    with pytest.raises(KeyboardInterrupt):
        execute.execute(wanted(), stopped, 1, "stopped")
    assert len(records.rows(stopped / "speed.csv")) == 3
    with (stopped / "speed.csv").open("a") as file:
        file.write("speed,speed,1,jo")  # a line that was not written to its end
    records.repair(stopped / "speed.csv")
    first = records.rows(stopped / "speed.csv")
    done.clear()
    monkeypatch.setattr(execute, "run_job", lambda job: done.append(job) or once(job))
    execute.execute(wanted(), stopped, 1, "taken up")
    assert len(done) == 5
    assert records.rows(stopped / "speed.csv")[:3] == first
    assert without_clock(stopped) == without_clock(whole)
    execute.execute(wanted(), stopped, 1, "again")
    assert len(done) == 5


def test_other_epochs_are_other_trainings(tmp_path):
    job = Job("speed", "speed", 1.0, "joint", "", "{}", 0, "{}", 1)
    records.append(tmp_path / "speed.csv", made.row(job))
    assert records.missing([job], tmp_path) == []
    longer = Job(*(*vars(job).values(),)[:-1], 2)
    assert records.missing([longer], tmp_path) == [longer]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_training_that_fails_is_named_and_the_others_go_on(tmp_path, processes):
    bad = Job("speed", "speed", 1.0, "OPM", "", '{"no_such_option": 1}', 0, "{}", 1)
    failed = execute.execute([bad, *wanted()[:2]], tmp_path, processes, "with a failure")
    assert [failure.job for failure in failed] == [bad]
    assert "speed 1, OPM" in str(failed[0])
    assert "no_such_option" in str(failed[0])
    assert len(records.rows(tmp_path / "speed.csv")) == 2


def test_a_run_with_a_failure_ends_with_1_and_leaves_out_what_has_not_chosen(
    tmp_path, monkeypatch, capsys
):
    once = execute.run_job

    def fails(job):
        if job.method == "OPM":
            raise RuntimeError("diverged")
        return once(job)

    monkeypatch.setattr(execute, "run_job", fails)
    effort = Effort(seeds=1, more_seeds=1, epochs=1, tries=1, tuning_places=1)
    assert run.run(["speed"], ["joint", "OPM"], tmp_path, effort, 1) == 1
    printed = capsys.readouterr()
    assert "speed: OPM is left out" in printed.out
    assert "diverged" in printed.err
    assert "planned" in printed.out.splitlines()[0]
    assert {row["method"] for row in records.rows(tmp_path / "speed.csv")} == {"joint"}
    monkeypatch.setattr(execute, "run_job", once)
    assert run.run(["speed"], ["joint", "OPM"], tmp_path, effort, 1) == 0
    assert {row["method"] for row in records.rows(tmp_path / "speed.csv")} == {"joint", "OPM"}


def test_methods_come_in_any_order_with_what_they_need(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr(run, "run", lambda *arguments: seen.update(got=arguments) or 0)
    arguments = ["run", "speed", "--out", str(tmp_path), "--methods"]
    main([*arguments, "MCR", "joint"])
    assert seen["got"][1] == ["joint", "MCR"]
    monkeypatch.undo()
    effort = Effort(seeds=1, more_seeds=1, epochs=1, tries=1, tuning_places=1)
    assert run.run(["speed"], ["MCR"], tmp_path, effort, 1) == 0
    tuned = {row["method"] for row in records.rows(tmp_path / "tuning.csv")}
    assert tuned == {"multi-loss", "MCR"}
    assert {row["method"] for row in records.rows(tmp_path / "speed.csv")} == {"MCR"}


def test_redo_drops_the_rows_of_a_method(tmp_path, monkeypatch, capsys):
    made.tune(tmp_path, ["joint", "OPM"], ["speed"])
    made.add(tmp_path, ("speed", 1.0), "OPM", 0, 0.5)
    made.add(tmp_path, ("speed", 1.0), "joint", 0, 0.5)
    monkeypatch.setattr(run, "run", lambda *arguments: 0)
    main(["run", "speed", "--out", str(tmp_path), "--redo", "OPM"])
    assert "2 rows dropped" in capsys.readouterr().out
    for name in ("speed", "tuning"):
        assert {row["method"] for row in records.rows(tmp_path / f"{name}.csv")} == {"joint"}


def test_a_file_with_other_columns_is_refused(tmp_path):
    path = tmp_path / "speed.csv"
    records.append(path, made.row(wanted()[0]))
    rows = records.rows(path)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(
            file, [*records.COLUMNS[:-1]], extrasaction="ignore", lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    for reads in (lambda: records.rows(path), lambda: records.append(path, rows[0])):
        with pytest.raises(ValueError, match=f"other columns .{records.COLUMNS[-1]}"):
            reads()


def test_timed_steps_of_relearning_have_its_k_means(monkeypatch):
    """One in four epochs, the share of its option, in every turn."""
    strategy, optimizer = timing.prepared("D&R")
    calls, once = [], type(strategy).gaps
    monkeypatch.setattr(
        type(strategy), "gaps", lambda self, *rows: calls.append(1) or once(self, *rows)
    )
    generator = timing.torch.Generator().manual_seed(0)
    for turn in (1, 2):
        timing.steps(strategy, optimizer, generator)
        assert len(calls) == 2 * turn
    assert timing.STEPS == 8 * 8


@pytest.mark.slow
def test_a_quick_run_twice(tmp_path):
    """From tuning to results; the second time nothing is left to do."""
    effort = Effort.quick()
    assert run.run(["speed"], list(run.QUICK_METHODS), tmp_path, effort, 2) == 0
    rows = records.rows(tmp_path / "speed.csv")
    assert len(rows) == 4 * len(run.QUICK_METHODS) * effort.seeds
    before = (tmp_path / "speed.csv").read_bytes()
    assert run.run(["speed"], list(run.QUICK_METHODS), tmp_path, effort, 2) == 0
    assert (tmp_path / "speed.csv").read_bytes() == before
