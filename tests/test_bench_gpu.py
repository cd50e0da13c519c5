"""`python -m bench gpu` and `tune`: floors, verdicts, files and exit codes; needs no GPU."""

import argparse
import itertools
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("tabulate")
pytest.importorskip("matplotlib")
pytest.importorskip("triton")

from mcr_fast.kernels import _config

from bench import machine, results
from bench.__main__ import main
from bench.floors import Rates, bytes_moved, gpu_floor_seconds
from bench.goals import outcome, verdicts
from bench.gpu import command, report, sanitize, suite, timing
from bench.gpu.measure import ALL_ROWS, TIMES
from bench.gpu.rows import TIMED_ROWS, providers, serving
from bench.gpu.sizes import SIZE_ROWS
from bench.gpu.suite import Item
from bench.inputs import make_inputs
from bench.results import ENVIRONMENT
from bench.tune_triton import KERNELS, case_of, entry, neighbours
from mcr_fast.ops import OPS

ROOT = Path(__file__).resolve().parent.parent
RATES = Rates(copy=4e12, gather=1e13, bfloat16=8e14)
STAMP = dict.fromkeys(ENVIRONMENT, "1") | {"device": "a card", "date": "2030-01-02 03:04"}


@pytest.mark.parametrize("name", ["gpu", "tune"])
def test_no_gpu_is_said_clearly(name, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main([name, "--out", str(tmp_path)]) == 2
    assert "no CUDA device" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_rates_are_kept(tmp_path):
    assert Rates.read(tmp_path / "rates.json") is None
    RATES.write(tmp_path / "rates.json")
    assert Rates.read(tmp_path / "rates.json") == RATES


def test_floors_are_those_of_the_arithmetic():
    rows = {row.label.split(" bfloat16")[0]: row.case for row in TIMED_ROWS}
    long = rows["nt_xent L=32768 D=512"]
    assert long.L == 32768
    assert gpu_floor_seconds(long, "fwd", replace(RATES, bfloat16=7.9e14)) == pytest.approx(
        0.70e-3, rel=0.01
    )
    assert gpu_floor_seconds(long, "full", RATES) == 4 * gpu_floor_seconds(long, "fwd", RATES)
    divergence = rows["row_divergence R=131072 C=1000"]
    assert bytes_moved(divergence, "fwd") == (131072 + 4096) * 1000 * 2
    assert gpu_floor_seconds(divergence, "full", RATES) == 2 * bytes_moved(divergence, "fwd") / 4e12
    uniform = rows["MIPD N=4096 C=1000 K=32 uniform"]
    assert gpu_floor_seconds(uniform, "fwd", RATES) == 2 * 32 * 4096 * 4000 / 1e13
    assert gpu_floor_seconds(replace(uniform, donors="cyclic"), "fwd", RATES) is None


def test_gather_sums_rows():
    code = (
        "import torch; from bench.gpu_rates import gather_sum\n"
        "table, index = torch.randn(9, 5), torch.randint(9, (4, 3))\n"
        "torch.testing.assert_close(gather_sum(table, index), table[index].sum(1))"
    )
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, check=True)


def test_goals_are_judged_from_their_own_side():
    assert outcome("time", 0.5, 0.5, "ms", at_least=False)["passed"] == "pass"
    assert outcome("time", 0.5, 0.51, "ms", at_least=False)["passed"] == "missed"
    assert outcome("ratio", 10, 10.1)["passed"] == "pass"
    assert outcome("ratio", 10, 9.9)["passed"] == "missed"
    assert outcome("ratio", 10, math.nan)["passed"] == "not measured"


def timed(row, provider, milliseconds, mode="full", **rest):
    line = {"op": row.case.op, "case": row.case.name, "mode": mode, "provider": provider}
    return {**line, "p50_ms": str(milliseconds), "skipped": "", **rest}


def judge(label, lines):
    row = next(row for row in TIMED_ROWS if label in row.label)
    made = [timed(row, *line[:2], **line[2]) for line in lines]
    return [(r["measured"], r["passed"]) for r in verdicts([row], made, RATES)]


def test_verdicts():
    lines = [("ours", 0.5, {}), ("eager", 6, {}), ("compile", 1, {})]
    found = judge("N=4096 C=1000 K=32 uniform", lines)
    # the goal of Triton's kernels, and that of the CUDA C++ ones
    assert found == [("0.5", "pass"), ("0.5", "pass"), ("12", "pass"), ("2", "missed")]
    lines = [("ours", 5, {"peak_mb": "301"})]
    found = judge("nt_xent L=32768", lines)
    assert found == [("5", "pass"), ("", "not measured"), ("301", "missed")]
    graph = {"mode": "full_graph"}
    lines = [("ours", 0.014, graph), ("ours", 9, {}), ("released", 0.42, graph)]
    assert judge("from latents", lines) == [("0.014", "pass"), ("0.014", "missed"), ("30", "pass")]
    assert judge("MCRLoss", [("ours", 0.16, {})]) == [("0.16", "missed")]
    # 541 MB in 0.2 ms of a card that copies 4 TB/s
    found = judge("row_divergence", [("ours", 0.2, {}), ("eager", 0.4, {})])
    assert found == [("0.676", "missed"), ("2", "missed")]


def test_ratios_are_those_of_the_same_mode(tmp_path):
    row = TIMED_ROWS[0]
    lines = [timed(row, "ours", 2), timed(row, "eager", 5), timed(row, "ours", 1, mode="fwd")]
    lines.append(timed(row, "eager", "", mode="fwd"))
    results.write(tmp_path / TIMES, lines)
    for found in (timing.lines_of(tmp_path, [row]), results.read(tmp_path / TIMES)):
        assert [line["ratio_to_ours"] for line in found] == ["1", "2.5", "1", ""]


def test_providers_of_the_rows():
    for row in TIMED_ROWS:
        names = [provider.name for provider in providers(row)]
        assert names[-1] == "compile"
        assert len(set(names)) == len(names)
        assert not any(name.startswith("ours_") for name in names)
        for goal in row.goals:
            assert goal.against in (*names, "ms", "MB", "copy")
    # this machine has no backend for CUDA tensors, or has Triton for them
    assert serving("nt_xent") in ([], ["triton"])


def test_both_backends_of_an_op_are_timed_by_their_names(monkeypatch):
    monkeypatch.setattr("bench.gpu.rows.serving", lambda op: ["triton", "cuda"])
    for row in TIMED_ROWS:
        names = [provider.name for provider in providers(row)]
        asked_for = ["ours_triton", "ours_cuda"] if row.case.op != "mcr_loss" else []
        assert [name for name in names if name.startswith("ours")] == ["ours", *asked_for]


def test_inputs_on_a_device():
    for row in ALL_ROWS:
        tiny = replace(row.case.tiny(), dtype="float32")
        inputs = make_inputs(tiny, device="meta" if tiny.donors != "cyclic" else "cpu")
        assert all(leaf.device.type in ("meta", "cpu") for leaf in inputs.leaves())


@pytest.fixture
def card(monkeypatch):
    """Makes the command believe in a GPU; its processes are replaced."""
    cuda = {"is_available": True, "get_device_name": "a card", "get_device_capability": (9, 0)}
    for name, answer in cuda.items():
        monkeypatch.setattr(torch.cuda, name, lambda *_, answer=answer: answer)
    for module in ("rows", "command"):
        monkeypatch.setattr(f"bench.gpu.{module}.serving", lambda op: ["triton", "cuda"])
    monkeypatch.setattr(sanitize, "find", lambda: None)
    state = argparse.Namespace(wrong="", without="", skipped="", problem="", dies_at="", how="")

    def collected(*, slow):
        cases = ("small", "large") if slow else ("small",)
        named = itertools.product((*OPS, "gather_add"), ("triton", "cuda"), cases)
        return [
            Item(f"t.py::test[{backend}-{op}-{case}-bound]")
            for op, backend, case in named
            if op != state.without
        ]

    def run_items(groups, command, folder, workers, deadline):
        return {
            nodeid: {"outcome": "failed", "message": "off by 1"}
            if nodeid.split("[")[1] == state.wrong
            else {"outcome": "passed", "seconds": 0.1}
            for group in groups
            for nodeid in group
        }

    def run_for(arguments, seconds):
        folder, rates = Path(arguments[3]), Path(arguments[5])
        if not rates.exists():
            RATES.write(rates)
        if "--rows" not in arguments or state.problem:
            return state.problem
        indices, names = (
            arguments[arguments.index(start) + 1 : end]
            for start, end in (("--rows", arguments.index("--seconds")), ("--providers", None))
        )
        for index in indices:
            row = ALL_ROWS[int(index)]
            if row.label == state.dies_at:
                return state.how
            for name, mode in itertools.product(names or ["ours"], row.modes):
                milliseconds = {"ours_triton": 0.04}.get(name, 0.01)
                line = timed(row, name, milliseconds, mode, skipped=state.skipped)
                results.merge(folder / TIMES, [{**machine.gpu_environment(), **line}])
        return ""

    monkeypatch.setattr(command, "collect", collected)
    monkeypatch.setattr(suite, "run_items", run_items)
    monkeypatch.setattr(timing, "run_for", run_for)
    return state


def test_command_writes_everything(card, tmp_path, capsys):
    assert main(["gpu", "--out", str(tmp_path), "--quick"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        *("correctness.csv", "targets.csv", "summary.txt", "gpu.png", TIMES, "sizes.csv")
    }
    checked = results.read(tmp_path / "correctness.csv")
    assert tuple(checked[0]) == report.CHECK_COLUMNS
    assert {row["op"] for row in checked} == {*OPS, "gather_add"}
    assert {row["device"] for row in checked} == {"a card"}
    timed_rows = results.read(tmp_path / TIMES)
    assert tuple(timed_rows[0]) == results.COLUMNS
    assert {r["ratio_to_ours"] for r in timed_rows if r["provider"] == "ours"} == {"1"}
    sizes = results.read(tmp_path / "sizes.csv")
    assert [row["op"] for row in sizes] == [row.case.op for row in SIZE_ROWS if row.quick]
    assert {row["of ours"] for row in sizes} == {"cuda"}
    assert {row["compile_ms"] for row in sizes} == {"0.01"}
    assert tuple(results.read(tmp_path / "targets.csv")[0]) == results.TARGET_COLUMNS
    text = (tmp_path / "summary.txt").read_text()
    assert "| nt_xent | triton |" in text
    assert "verified: " in text
    assert "copy 4.00 TB/s" in text
    assert (
        "\n| nt_xent | L64_C28_D512_M2_float32 | 0.01 | 0.04 | 0.01 | 0.01 | cuda | cuda |" in text
    )
    assert '    "nt_xent": ((None, ("cuda", "triton")),),' in text
    assert text in capsys.readouterr().out


def test_all_files_come_back_from_a_full_run(card, tmp_path):
    assert main(["gpu", "--out", str(tmp_path)]) == 0
    assert len(list(tmp_path.iterdir())) <= 8


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
        ("ended with -11", ["cuda", "not run", *["cuda"] * 6]),  # costs itself
        ("stopped after 9 s", ["cuda", *["not run"] * 7]),  # the others' turn
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
    assert main(["gpu", "--out", str(tmp_path), "--only", "time", "--budget", "20"]) == 1
    text = (tmp_path / "summary.txt").read_text()
    assert text.count("not run, out of time") == len(TIMED_ROWS)


def test_summary_names_what_was_not_run():
    rows = [
        {
            "op": "nt_xent",
            "backend": "triton",
            "case": "a",
            "checks": "",
            "passed": "yes",
            "detail": "",
        }
    ]
    rows.append({**rows[0], "case": "b", "passed": "not run", "detail": "out of time"})
    text = report.summary(rows, [], [], None, STAMP | {"dirty": "unknown"})
    assert "incomplete: 1 checks right, 0 wrong, 1 not run" in text
    assert "| 1 (changes unknown) | a card | 2030-01-02 |" in text


def test_tuner_knows_every_kernel():
    assert set(KERNELS) <= set(_config.TABLE)
    for kernel in KERNELS:
        table = _config.TABLE[kernel]
        for at, config in enumerate(table):
            case, mode = case_of(kernel, table, at)
            assert case.N > 0
            assert mode in ("fwd", "full")
            axis = KERNELS[kernel][0]
            assert _config.choose(kernel, getattr(case, axis)) == config
            for other in neighbours(config):
                assert other != config
                assert other.max_registers is None or other.max_registers <= 2048 // other.num_warps


def test_tuner_prints_what_can_be_pasted():
    for table in _config.TABLE.values():
        for config in table:
            pasted = eval(entry(config).rstrip(","), {"Config": _config.Config})
            assert pasted == config
