"""`python -m bench gpu` and `tune`: floors, verdicts, files and exit codes; needs no GPU."""

import argparse
import itertools
from pathlib import Path

import pytest
import torch

pytest.importorskip("tabulate")
pytest.importorskip("matplotlib")
pytest.importorskip("triton")

from test_bench_goals import RATES, both_of, figures_of, timed

from bench import machine, results
from bench.__main__ import main
from bench.gpu import command, record, report, sanitize, suite, timing
from bench.gpu.measure import ALL_ROWS
from bench.gpu.record import FIGURE_NAMES, FIGURES, TARGETS, TIMES, Record
from bench.gpu.rows import TIMED_ROWS, chosen
from bench.gpu.sizes import SIZE_ROWS
from bench.gpu.suite import Item
from bench.results import ENVIRONMENT
from bench.tune_triton import KERNELS, case_of, entry, neighbours
from mcr_fast.kernels.config import TABLE, Config, choose
from mcr_fast.ops.registry import with_kernels

OPS = with_kernels("triton")
ROOT = Path(__file__).resolve().parent.parent
STAMP = dict.fromkeys(ENVIRONMENT, "1") | {"device": "a card", "date": "2030-01-02 03:04"}


@pytest.mark.parametrize("name", ["gpu", "tune"])
def test_no_gpu_is_said_clearly(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([name, "--out", str(tmp_path)]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_ratios_are_those_of_the_same_mode(tmp_path):
    row = TIMED_ROWS[0]
    lines = [timed(row, "ours", 2), timed(row, "eager", 5), timed(row, "ours", 1, mode="fwd")]
    lines.append(timed(row, "eager", "", mode="fwd"))
    results.write(tmp_path / TIMES, lines)
    for found in (Record(tmp_path, STAMP, [row]).lines(), results.read(tmp_path / TIMES)):
        assert [line["ratio_to_ours"] for line in found] == ["1", "2.5", "1", ""]


@pytest.fixture
def card(monkeypatch):
    """Makes the command believe in a GPU; its processes are replaced."""
    cuda = {"is_available": True, "get_device_name": "a card", "get_device_capability": (9, 0)}
    for name, answer in cuda.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    for module in ("rows", "command"):
        monkeypatch.setattr(f"bench.gpu.{module}.serving", both_of)
    monkeypatch.setattr(sanitize, "find", lambda: None)
    state = argparse.Namespace(wrong="", without="", skipped="", problem="", dies_at="", how="")

    def collected(*, slow):
        cases = ("small", "large") if slow else ("small",)
        named = itertools.product((*OPS, "gather_add"), cases)
        return [
            Item.named(f"t.py::test[{backend}-{op}-{case}-bound]")
            for op, case in named
            for backend in both_of(op)
            if op != state.without
        ]

    def run_items(groups, command, folder, workers, deadline, note):
        for nodeid in (nodeid for group in groups for nodeid in group):
            wrong = nodeid.split("[")[1] == state.wrong
            good = {"outcome": "passed", "seconds": 0.1}
            note({nodeid: {"outcome": "failed", "message": "off by 1"} if wrong else good})

    def run_lines(arguments, seconds, silence, say):
        folder = Path(arguments[3])
        if "--who" not in arguments:
            results.merge(folder / TARGETS, figures_of(RATES), FIGURES, FIGURE_NAMES)
            return state.problem
        if state.problem:
            return state.problem
        who, end = arguments[arguments.index("--who") + 1], ""
        lines, environment = [], machine.gpu_environment()
        for index in arguments[arguments.index("--rows") + 1 :]:
            row = ALL_ROWS[int(index)]
            if row.label == state.dies_at:
                end = state.how
                break
            for name in (provider.name for provider in chosen(row, who)):
                milliseconds = {"ours_triton": 0.04}.get(name, 0.01)
                lines += [
                    {**environment, **timed(row, name, milliseconds, mode, skipped=state.skipped)}
                    for mode in row.modes_of(name)
                ]
        results.merge(folder / TIMES, lines)
        return end

    monkeypatch.setattr(command, "collect", collected)
    monkeypatch.setattr(suite, "run_items", run_items)
    monkeypatch.setattr(timing, "run_lines", run_lines)
    return state


def test_command_writes_everything(card, tmp_path, capsys):
    assert main(["gpu", "--out", str(tmp_path), "--quick"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *("correctness.csv", "targets.csv", "summary.txt", "gpu.png", TIMES, "sizes.csv")
    }
    checked = results.read(tmp_path / "correctness.csv")
    assert tuple(checked[0]) == record.CHECK_COLUMNS
    assert {row["op"] for row in checked} == {*OPS, "gather_add"}
    assert {row["device"] for row in checked} == {"a card"}
    timed_rows = results.read(tmp_path / TIMES)
    assert tuple(timed_rows[0]) == results.COLUMNS
    assert {r["ratio_to_ours"] for r in timed_rows if r["provider"] == "ours"} == {"1"}
    sizes = results.read(tmp_path / "sizes.csv")
    assert [row["op"] for row in sizes] == [row.case.op for row in SIZE_ROWS if row.quick]
    # one alone has won nothing
    compared = {"permuted_divergence", "nt_xent", "sup_con"}
    assert {row["op"] for row in sizes if row["of ours"] == "cuda"} == compared
    assert {row["compile_ms"] for row in sizes} == {"0.01"}
    assert tuple(results.read(tmp_path / "targets.csv")[0]) == FIGURES
    text = (tmp_path / "summary.txt").read_text()
    assert "| nt_xent | triton |" in text
    assert "verified: " in text
    assert "copy bandwidth, read and written: 4 TB/s" in text
    assert (
        "\n| nt_xent | L64_C28_D512_M2_float32 | 0.01 | 0.04 | 0.01 | 0.01 | cuda | cuda |" in text
    )
    assert '    "nt_xent": ((None, ("cuda", "triton")),),' in text
    assert text in capsys.readouterr().out


def test_all_files_come_back_from_a_full_run(card, tmp_path):
    assert main(["gpu", "--out", str(tmp_path)]) == 0
    # of the 8 that a device machine sends back: a log of the command may lie beside them
    assert len(list(tmp_path.iterdir())) <= 7


def test_command_fails_on_one_wrong_result(card, tmp_path):
    card.wrong = "cuda-sup_con-large-bound]"
    assert main(["gpu", "--out", str(tmp_path), "--only", "check"]) == 1
    text = (tmp_path / "summary.txt").read_text()
    assert "FAILED: 1 checks right, 1 wrong" in text
    assert "WRONG: 1\nsup_con/large bound (cuda): off by 1" in text
    rows = results.read(tmp_path / "correctness.csv")
    assert {row["passed"] for row in rows if row["backend"] == "triton"} == {"yes"}
    # its other case alone, and of other ops
    assert main(["gpu", "--out", str(tmp_path), "--only", "check", "--quick"]) == 0
    assert main(["gpu", "--out", str(tmp_path), "--only", "check", "--op", "nt_xent"]) == 0


def test_command_fails_where_nothing_was_checked(card, tmp_path, monkeypatch):
    card.without = "sup_con"
    assert main(["gpu", "--out", str(tmp_path), "--only", "check"]) == 1
    text = (tmp_path / "summary.txt").read_text()
    assert "| incomplete: 0 checks right, 0 wrong, 1 not run |" in text
    assert "sup_con/all all (cuda): no item of tests/suite ran" in text

    def broken(**_):
        raise RuntimeError("tests/suite cannot be collected")

    monkeypatch.setattr(command, "collect", broken)
    assert main(["gpu", "--out", str(tmp_path), "--only", "sanitize"]) == 1
    assert "tests/suite cannot be collected" in (tmp_path / "summary.txt").read_text()


def test_sizes_that_do_not_agree_stand_in_the_summary(tmp_path):
    rows = [row for row in SIZE_ROWS if row.case.C == 1000 and row.case.op == OPS[0]][:2]
    lines = [
        timed(row, provider, milliseconds)
        for row, times in zip(rows, ((1, 2), (3, 2)), strict=True)
        for provider, milliseconds in zip(("ours_cuda", "ours_triton"), times, strict=True)
    ]
    text = report.write_sizes(tmp_path / "sizes.csv", rows, lines, STAMP)
    assert "do not agree, the faster one by how much:\npermuted_divergence C=1000" in text
    assert f"{rows[1].case.name} triton 1.50x" in text
    assert "agree" not in report.write_sizes(tmp_path / "sizes.csv", rows[:1], lines, STAMP)


@pytest.mark.parametrize("how", ["skipped", "problem"])
def test_command_fails_when_ours_cannot_run(card, tmp_path, how):
    setattr(card, how, "OutOfMemoryError")
    old = [timed(next(r for r in ALL_ROWS if r.case.op == op), "ours", 1) for op in OPS]
    results.write(tmp_path / TIMES, old)
    arguments = ["gpu", "--out", str(tmp_path), "--only", "sizes", "--op", "sup_con"]
    assert main(arguments) == 1
    assert "OutOfMemoryError" in (tmp_path / "summary.txt").read_text()
    if how == "problem":  # the line of an earlier run does not stand for this one
        kept = {row["op"] for row in results.read(tmp_path / TIMES)}
        assert kept == {*OPS} - {"sup_con"}
        assert {row["fastest"] for row in results.read(tmp_path / "sizes.csv")} == {"not run"}


@pytest.mark.parametrize(
    ("how", "fastest"),
    [
        # costs itself; beyond 1024 rows Triton is alone
        (
            "ended with -11",
            ["cuda", "not run", "cuda", *["compile"] * 2, *["cuda"] * 3, *["compile"] * 2],
        ),
        ("stopped after 9 s", ["cuda", *["not run"] * 9]),  # the others' turn
    ],
)
def test_a_size_that_does_not_come_back(card, tmp_path, how, fastest):
    card.dies_at, card.how = "sup_con L=512 float32", how
    arguments = ["gpu", "--out", str(tmp_path), "--only", "sizes", "--op", "sup_con"]
    assert main(arguments) == 1
    text = (tmp_path / "summary.txt").read_text()
    assert text.count(how) == fastest.count("not run")
    assert f"sup_con L=512 float32: {how}" in text
    found = [row["fastest"] for row in results.read(tmp_path / "sizes.csv")]
    assert found == fastest


def test_what_is_out_of_time_is_said(card, tmp_path):
    assert main(["gpu", "--out", str(tmp_path), "--only", "time", "--budget", "4"]) == 1
    text = (tmp_path / "summary.txt").read_text()
    assert text.count("not run, out of time") == len(TIMED_ROWS)


def test_summary_names_what_was_not_run():
    rows = [Item.named(f"t.py::test[triton-nt_xent-{case}-bound]").row("passed") for case in "ab"]
    rows[1] |= {"passed": "not run", "detail": "out of time"}
    text = report.summary(rows, [], [], [], STAMP | {"dirty": "unknown"})
    assert "incomplete: 1 checks right, 0 wrong, 1 not run" in text
    assert "| 1 (changes unknown) | a card | 2030-01-02 |" in text


def test_tuner_knows_every_kernel():
    assert set(KERNELS) <= set(TABLE)
    for kernel in KERNELS:
        table = TABLE[kernel]
        for at, config in enumerate(table):
            case, mode = case_of(kernel, table, at)
            assert case.N > 0
            assert mode in ("fwd", "full")
            axis = KERNELS[kernel][0]
            assert choose(kernel, getattr(case, axis)) == config
            for other in neighbours(config):
                assert other != config
                assert other.max_registers is None or other.max_registers <= 2048 // other.num_warps


def test_tuner_prints_what_can_be_pasted():
    for table in TABLE.values():
        for config in table:
            pasted = eval(entry(config).rstrip(","), {"Config": Config})
            assert pasted == config
