"""The benchmarks: every provider computes the same, results are written and compared."""

import gc
import re
import sys
from dataclasses import replace

import pytest
import torch
from divergences import on_threads

pytest.importorskip("pytorch_metric_learning")
pytest.importorskip("tabulate")

from bench import floors, registry, results
from bench.__main__ import main
from bench.case import Case
from bench.floors import gemm_rate
from bench.inputs import make_inputs
from bench.measure import Effort, measure
from bench.memory import peak_bytes
from bench.registry import STEMS, benchmarks
from bench.table import write_tables
from bench.truth import nt_xent_in_blocks
from mcr_fast.ops.registry import OPS

# Every code path of the eager and published formulations, on a size that takes no time.
CASES = [
    (stem, replace(case, N=min(case.N, n), D=16, C=min(case.C, 5) or case.C, K=min(case.K, 3)))
    for stem in STEMS
    for case in {(c.dtype, c.donors, c.start, c.M): c for c in benchmarks()[stem].cases}.values()
    # the contrastive formulations change with the number of rows
    for n in ((7, 150) if stem in ("nt_xent", "sup_con") else (7,))
]


@pytest.fixture(autouse=True, scope="module")
def _quickly():
    """Speed is of no interest here, and threads that wait for a busy core take long."""
    with on_threads(1), pytest.MonkeyPatch.context() as patch:
        patch.setattr(gc, "collect", lambda: 0)
        patch.setattr(floors, "gemm_rate", lambda dtype, threads: 1e10)
        yield


def loss_and_gradients(provider, case, dtype=None):
    case = replace(case, donors="uniform") if case.donors == "drawn" else case
    inputs = make_inputs(case, dtype=dtype)
    inputs.case = case
    loss = provider.forward(inputs)()
    loss.backward()
    return loss.detach().double(), [
        torch.zeros_like(x).double() if x.grad is None else x.grad.double() for x in inputs.leaves()
    ]


@pytest.mark.parametrize(("stem", "case"), CASES, ids=lambda x: getattr(x, "name", x))
def test_providers_agree(stem, case):
    benchmark = benchmarks()[stem]
    truth, gradients = loss_and_gradients(benchmark.provider("reference"), case, torch.float64)
    tolerance = 0.05 if case.dtype == "bfloat16" else 2e-4
    for provider in benchmark.providers:
        if provider.compiled or provider.reason_to_skip(case):
            continue
        loss, found = loss_and_gradients(provider, case)
        if provider.gives_value:
            assert abs(loss - truth) <= tolerance * (1e-3 + abs(truth)), provider.name
        scale = max(g.norm() for g in gradients)
        for mine, true in zip(found, gradients, strict=True):
            assert (mine - true).norm() <= tolerance * scale, provider.name


def test_registry_is_complete():
    assert set(benchmarks()) == {*(op for op in OPS if not OPS[op].made_of), "mcr_loss"}
    for stem, benchmark in benchmarks().items():
        assert benchmark.op == stem
        assert [p.name for p in benchmark.providers][:4] == [
            *("ours", "reference", "eager", "compile")
        ]
        names = [case.name for case in benchmark.cases]
        assert len(set(names)) == len(names)
        assert {axis for case in benchmark.cases for axis in case.sweeps} == set(benchmark.axes)
        assert any(case.quick for case in benchmark.cases), "nothing to run with --quick"


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder of a short run of one case of every op, with two of its providers."""
    folder = tmp_path_factory.mktemp("results")
    effort = Effort(seconds=0.002, rounds=3, memory=False)
    for benchmark in benchmarks().values():
        case = next(c for c in benchmark.cases if c.quick)
        providers = tuple(map(benchmark.provider, ("ours", "eager")))
        for mode in registry.MODES:
            rows = measure(benchmark, case, mode, effort, providers)
            results.merge(folder / f"{benchmark.op}.csv", rows)
    return folder


def test_rows_say_what_was_measured_and_where(measured):
    for stem in STEMS:
        rows = results.read(measured / f"{stem}.csv")
        assert tuple(rows[0]) == results.COLUMNS
        assert {row["mode"] for row in rows} == set(registry.MODES)
        for row in rows:
            assert row["skipped"] or float(row["p20_ms"]) <= float(row["p50_ms"])
            assert row["commit"]
            assert row["device"]
            assert row["provider"] != "ours" or float(row["ratio_to_ours"]) == 1


def test_merge_replaces_what_was_measured_again(measured, tmp_path):
    rows = results.read(measured / "nt_xent.csv")
    path = tmp_path / "nt_xent.csv"
    results.write(path, rows)
    results.merge(path, [{**rows[0], "p50_ms": "123"}])
    again = results.read(path)
    assert len(again) == len(rows)
    assert again[0]["p50_ms"] == "123"


def test_compare_finds_what_got_slower(measured, tmp_path, capsys):
    before, after = measured / "nt_xent.csv", tmp_path / "after.csv"
    rows = results.read(before)
    results.write(after, [{**row, "p50_ms": str(2 * float(row["p50_ms"]))} for row in rows])
    assert main(["compare", str(before), str(before)]) == 0
    assert main(["compare", str(before), str(after)]) == 1
    assert "slower" in capsys.readouterr().out
    assert main(["compare", str(after), str(before)]) == 0
    assert "faster" in capsys.readouterr().out


def test_tables_come_from_the_results(measured, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "above\n<!-- bench:begin -->\nold\n<!-- bench:end -->\nbetween\n"
        "<!-- bench:begin targets -->\n<!-- bench:end -->\nbelow\n"
        "<!-- bench:begin cases -->\n<!-- bench:end -->\n"
    )
    assert write_tables(page, measured) == 3
    text = page.read_text()
    assert "old" not in text
    for work in ("MIPD", "NT-Xent", "whole `MCRLoss` step"):
        (line,) = re.findall(rf"^\| {work} +\|.*", text, re.MULTILINE)
        assert re.search(r"\d", line)
    assert text.startswith("above\n<!-- bench:begin -->\n")
    assert "between\n<!-- bench:begin targets -->\nNot measured yet.\n<!-- bench:end -->\nb" in text
    write_tables(page, measured)
    assert page.read_text() == text


def test_plots_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    from bench.plots import plot

    effort = Effort(seconds=0.001, rounds=3, memory=False)
    benchmark = benchmarks()["reconstruction_loss"]
    for case in [c for c in benchmark.cases if c.N <= 128 and c.sweeps]:
        rows = measure(benchmark, case, "full", effort, (benchmark.provider("ours"),))
        results.merge(tmp_path / "reconstruction_loss.csv", rows)
    assert [path.name for path in plot(tmp_path)] == ["reconstruction_loss.png"]


def test_skipped_providers_say_why(monkeypatch):
    large = replace(benchmarks()["nt_xent"].cases[0], N=2048)
    assert "would need" in benchmarks()["nt_xent"].provider("pml").reason_to_skip(large)
    monkeypatch.setattr(registry, "compiler_missing", lambda: "no compiler")
    compiled = benchmarks()["nt_xent"].provider("compile")
    assert compiled.reason_to_skip(replace(large, N=8)) == "no compiler"


def test_truth_in_blocks_is_the_reference():
    case = Case("nt_xent", N=20, D=16, C=3)
    blocks, dense = (make_inputs(case, dtype=torch.float64) for _ in range(2))
    loss = nt_xent_in_blocks(blocks.latents, blocks.all_labels(), 0.5, block_rows=7)
    truth = benchmarks()["nt_xent"].provider("reference").forward(dense)()
    truth.backward()
    torch.testing.assert_close(loss, truth.detach())
    for mine, true in zip(blocks.latents, dense.latents, strict=True):
        torch.testing.assert_close(mine.grad, true.grad)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_dense_matrix_is_seen():
    case = Case("nt_xent", N=512, D=16, C=6)
    matrix = 4 * case.L**2
    assert peak_bytes(case, "eager") > 2 * matrix
    assert peak_bytes(case, "ours") < peak_bytes(case, "eager")


def test_rate_of_a_product(monkeypatch):
    product = torch.mm
    monkeypatch.setattr(torch, "mm", lambda x, y, out: product(x[:9], y[:, :9], out=out[:9, :9]))
    assert 0 < gemm_rate.__wrapped__(torch.float32, 1) < float("inf")


def test_numbers_are_written_to_a_few_digits():
    written = [results.significant(x, 3) for x in (1234.5, 0.012345, 3e-7, 0, float("nan"), None)]
    assert written == ["1230", "0.0123", "3e-07", "0", "nan", ""]
