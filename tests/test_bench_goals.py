"""Floors and goals of the benchmarks, the rows timed on a GPU, and its measure; needs no GPU."""

import math
from dataclasses import asdict, replace

import pytest
import torch

pytest.importorskip("tabulate")
pytest.importorskip("triton")

from bench import gpu_timer, measure, results, targets
from bench.case import Case
from bench.floors import Rates, bytes_moved, gpu_floor_seconds, rate_figure
from bench.goals import outcome, verdicts
from bench.gpu.measure import ALL_ROWS
from bench.gpu.record import FIGURE_NAMES, FIGURES
from bench.gpu.rows import LIKE, TIMED_ROWS, chosen, providers, serving
from bench.gpu.sizes import SIZE_ROWS
from bench.inputs import make_inputs
from bench.registry import benchmarks
from mcr_fast.ops.registry import OPS

RATES = Rates(copy=4e12, gather=1e13, gather_narrow=8e12, bfloat16=8e14)


def figures_of(rates):
    return [rate_figure(name, rate) for name, rate in asdict(rates).items()]


def test_rates_are_kept(tmp_path):
    path, figures = tmp_path / "targets.csv", figures_of(RATES)
    assert Rates.read(path) is None
    results.write(path, figures[:2], FIGURES)
    assert Rates.read(path) is None
    results.merge(path, figures, FIGURES, FIGURE_NAMES)
    assert Rates.read(path) == RATES


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
    narrow = rows["MIPD N=32768 C=174 K=32 uniform"]
    assert gpu_floor_seconds(narrow, "fwd", RATES) == 2 * 32 * 32768 * 4 * 174 / 8e12
    assert gpu_floor_seconds(replace(uniform, donors="cyclic"), "fwd", RATES) is None


@pytest.mark.process("interpreted")
def test_gather_sums_rows():
    from bench.gpu_rates import gather_sum

    table, index = torch.randn(9, 5), torch.randint(9, (4, 3))
    torch.testing.assert_close(gather_sum(table, index), table[index].sum(1))


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


def both_of(op):
    """The backends that an op has kernels of, as though all were here."""
    return ["triton", *({"cuda"} & {*OPS[LIKE.get(op, op)].backends})]


def test_both_backends_of_an_op_are_timed_by_their_names(monkeypatch):
    monkeypatch.setattr("bench.gpu.rows.serving", both_of)
    for row in TIMED_ROWS:
        names = [provider.name for provider in providers(row)]
        # CUDA C++ takes no table of donors but a small one, and no large contrastive batch
        both = row.case.op == "permuted_divergence" and (
            row.case.donors != "uniform" or row.case.N < 100
        )
        asked_for = ["ours_triton", "ours_cuda"] if both else []
        assert [name for name in names if name.startswith("ours")] == ["ours", *asked_for]


def test_modes():
    rows = {row.label: row for row in TIMED_ROWS}
    large = rows["MIPD N=4096 C=1000 K=32 uniform"]
    assert large.modes_of("ours_cuda") == ("full", "fwd", "full_graph")
    assert large.modes_of("eager") == ("full", "fwd")
    assert large.modes_of("compile") == ("full",)
    small = next(row for label, row in rows.items() if "from latents" in label)
    assert "full_graph" in small.modes_of("released")
    assert all(row.graph for label, row in rows.items() if label.startswith("MIPD"))
    assert SIZE_ROWS[0].modes_of("eager") == ("full",)


def test_each_phase_times_its_own():
    for row in ALL_ROWS:
        names = [provider.name for provider in providers(row)]
        phases = [[p.name for p in chosen(row, who)] for who in ("ours", "peers", "compile")]
        assert sorted(sum(phases, [])) == sorted(names)


def test_inputs_on_a_device():
    for row in ALL_ROWS:
        tiny = replace(row.case.tiny(), dtype="float32")
        inputs = make_inputs(tiny, device="meta" if tiny.donors != "cyclic" else "cpu")
        assert all(leaf.device.type in ("meta", "cpu") for leaf in inputs.leaves())


def test_few_classes_are_held_against_triton():
    rows = [row for row in SIZE_ROWS if row.goals]
    assert [row.case.C for row in rows] == [6, 28, 101]
    lines = [timed(rows[0], "ours_cuda", 1), timed(rows[0], "ours_triton", 1.6)]
    lines += [timed(rows[1], "ours_cuda", 1), timed(rows[1], "ours_triton", 1.4)]
    lines.append(timed(rows[2], "ours_triton", 1.4))
    found = verdicts(rows, lines)
    assert [row["passed"] for row in found] == ["pass", "missed", "not measured"]
    assert found[0]["what"] == "MIPD N=4096 C=6 K=32 cyclic, against ours_triton"


def test_goals_of_both_kinds_of_kernels_are_there():
    goals = {
        row.label: [goal.value for goal in row.goals if goal.against == "ms"] for row in TIMED_ROWS
    }
    assert goals["MIPD N=4096 C=1000 K=32 uniform"] == [0.55, 0.50]
    assert goals["MIPD N=4096 C=100 exhaustive"] == [3, 2]
    assert goals["MCRLoss published default N=32 C=6 K=32, eager launch"] == [0.15]


def test_goals_of_a_cpu_are_judged_from_what_was_measured(monkeypatch):
    def measured(benchmark, case, mode, effort, providers):
        assert not effort.memory
        given = {"op": case.op, "case": case.name, "mode": mode, "element_ns": "0.5"}
        times = {p.name: {"p50_ms": str(2 + 8 * at)} for at, p in enumerate(providers)}
        return [{**given, "provider": name, **time} for name, time in times.items()]

    monkeypatch.setattr(targets, "measure", measured)
    found = [row for each in targets.ROWS for row in targets.timed(each, measure.Effort())]
    judged = [row["passed"] == "pass" for row in found]
    assert judged == [False, True, False, False, False, True, True, False, False, True]
    assert found[0]["what"] == "MIPD N=32 C=6 K=32 D=512, against released"
    assert found[0]["detail"] == "2 ms, released 10 ms"
    assert (found[-1]["measured"], found[-1]["unit"]) == ("0.5", "ns")


class Event:
    """Of a device whose every call takes a millisecond."""

    clock = 0.0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        Event.clock += 0.5
        self.at = Event.clock

    def elapsed_time(self, end):
        return 2 * (end.at - self.at)


@pytest.fixture
def events(monkeypatch):
    """What the GPU's timer needs of a GPU."""
    monkeypatch.setattr(torch.cuda, "Event", Event)
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**9, 10**9))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 0)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 10**6)
    monkeypatch.setattr(gpu_timer, "flush_buffer", lambda: torch.zeros(1))


def test_measure_on_a_gpu(events, monkeypatch):
    monkeypatch.setattr(measure, "make_inputs", lambda case, device: make_inputs(case))
    case = Case("row_divergence", N=8, C=4, K=2, M=0)
    benchmark = benchmarks()[case.op]
    eager = benchmark.provider("eager")

    def fails(inputs):
        raise RuntimeError("out of\nmemory")

    chosen = [
        benchmark.provider("ours"),
        eager,
        replace(eager, name="failing", run=fails),
        replace(eager, name="large", bytes_needed=lambda case: 9e8),
    ]

    def modes(name):
        return ("full", "fwd", "bwd")

    rows = list(measure.measure_on_gpu(case, modes, chosen, RATES, 0.02))
    assert [(row["provider"], row["mode"]) for row in rows[:4]] == [
        *(("ours", "full"), ("ours", "fwd"), ("ours", "bwd"), ("eager", "full"))
    ]
    assert {row["p50_ms"] for row in rows[:6]} == {"1"}
    assert {row["calls"] for row in rows[:6]} == {"20"}
    assert [row.get("peak_mb", "") for row in rows[:3]] == ["0.9996", "", ""]
    floor = gpu_floor_seconds(case, "full", RATES)
    assert float(rows[0]["floor_fraction"]) == pytest.approx(floor / 1e-3, rel=1e-3)
    assert {row["skipped"] for row in rows[6:9]} == {"RuntimeError: out of memory"}
    assert {row["skipped"] for row in rows[9:]} == {"would need 1 GB"}
