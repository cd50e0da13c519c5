"""The model of a step on an H200: machine code read, kernels' lines, times; the tables of docs."""

import math
import shutil
from dataclasses import replace

import pytest

pytest.importorskip("tabulate")
pytest.importorskip("triton")

from suite import processes
from test_bench_goals import timed

from bench import machine, results, table
from bench.gpu import profile
from bench.gpu.record import Record
from bench.gpu.rows import MIPD, TIMED_ROWS
from bench.model import command, figures, kernels, sass
from bench.model.figures import Work
from bench.model.rows import ROWS
from bench.results import ENVIRONMENT

STAMP = dict.fromkeys(ENVIRONMENT, "1")
# a loop over pairs: its class loop is unrolled twice; a special case may be skipped
LOOP = """
\t.section\t.text.first_kernel,"ax",@progbits
first_kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
.L_x_0:
        /*0010*/                   LDG.E R2, [R4.64] ;
        /*0020*/              @!P0 BRA `(.L_x_1) ;
        /*0030*/                   MUFU.LG2 R3, R2 ;
        /*0040*/                   FFMA R5, R3, R2, R5 ;
        /*0050*/                   FFMA R6, R3, R2, R6 ;
        /*0060*/                   MUFU.LG2 R3, R2 ;
.L_x_1:
        /*0070*/                   MUFU.LG2 R3, R2 ;
        /*0080*/                   MUFU.LG2 R4, R2 ;
        /*0090*/                   FFMA R5, R3, R2, R5 ;
        /*00a0*/               @P1 BRA `(.L_x_0) ;
        /*00b0*/                   EXIT ;
.L_x_2:
        /*00c0*/                   BRA `(.L_x_2) ;
\t.section\t.text.second_kernel,"ax",@progbits
        /*0000*/                   EXIT ;
"""


def test_ways_around_a_loop():
    found = sass.parse(LOOP)
    assert set(found) == {"first_kernel", "second_kernel"}
    code = found["first_kernel"]
    assert [len(loop) for loop in code.loops()] == [10]
    assert len(code.way_around({"MUFU.LG2": 1})) == 6  # past the special case
    assert len(code.way_around({"MUFU.LG2": 3})) == 10
    assert len(code.way_around({"MUFU.LG2": 2, "FFMA": 3})) == 10
    assert code.way_around({"MUFU.LG2": 5}) == []
    assert found["second_kernel"].way_around({"EXIT": 1}) == []


def test_the_longest_pipe_is_the_time():
    work = Work("k", 2, elements=figures.ISSUE * figures.EFFICIENCY * 1e-5, slots=2, special=0.1)
    assert work.us == pytest.approx(20 + 4)
    assert work.binds == "issue"
    bytes_bound = replace(work, hbm=figures.HBM * 1e-3)
    assert bytes_bound.us == pytest.approx(1004)
    assert bytes_bound.binds == "memory"
    assert Work("k", 1).binds == "launches"
    launches = [Work("aten::mm", 1), Work("k", 2)]
    assert figures.host_us(launches, "triton") == pytest.approx(5 + 18)
    assert figures.step_us(launches, "triton") == pytest.approx(5.2)
    assert figures.step_us(launches, "triton", "full") == pytest.approx(23)


def test_works_survive_the_file(tmp_path):
    works = [Work("k", 2, 10.0, 2.0, 0.5, 1e6, 2e6, 3e6), Work("aten::mul", 1)]
    results.write(tmp_path / "f.csv", figures.rows("a row", "cuda", works), figures.COLUMNS)
    assert figures.predicted(tmp_path / "f.csv") == {("a row", "cuda"): works}
    assert figures.predicted(tmp_path / "none.csv") == {}


def test_slots_are_counted_in_the_narrowest_instance():
    line = kernels.Kernel(
        kernels.Loop({"MUFU.LG2": 1}, lambda tile: tile["steps"], kernels.pair_classes),
        source="far.cu",
        instances=lambda case: r"TeamILi(?P<lanes>\d+)ELi(?P<steps>\d+)E",
    )
    code = sass.parse(LOOP)["first_kernel"]
    codes = {f"TeamILi{lanes}ELi{steps}E": code for lanes, steps in ((32, 32), (8, 2), (4, 2))}
    case = replace(MIPD, N=8, C=10, K=4)
    assert kernels.instance(line, case, codes)[0] == {"lanes": 8, "steps": 2}
    assert kernels.instance(line, replace(case, C=2000), codes) is None
    assert kernels.pair_classes(case, {"lanes": 8, "steps": 2}) == 2 * 4 * 8 * 16
    work = kernels.work_of("far", 1, case, line, {"lanes": 8, "steps": 2}, code)
    with pytest.raises(ValueError, match="has no loop"):
        kernels.work_of("far", 1, case, line, {"lanes": 8, "steps": 64}, code)
    assert (work.slots, work.special) == (3, 1)


def test_bytes_and_operations_are_those_of_the_case():
    case = next(row.case for row in TIMED_ROWS if row.label.startswith("nt_xent L=32768"))
    tile = {"BLOCK_M": 128, "BLOCK_N": 128}

    def work(name, tile):
        return kernels.work_of(name, 1, case, kernels.line_of(name, case, "triton"), tile, None)

    sums = work("_exp_sums_kernel", tile)
    assert sums.flops == case.L**2 * case.D
    assert sums.pipes["L2"] == pytest.approx(1.56e-3, rel=0.01)
    assert work("aten::mm", {}).flops == 2 * case.L**2 * case.D
    assert max(work("aten::cat", {}).pipes.values()) == 0
    assert kernels.gathered(MIPD, {}) == 4 * kernels.gathered(replace(MIPD, donors="cyclic"), {})


def test_times_stand_beside_the_model(tmp_path, monkeypatch):
    row = TIMED_ROWS[0]
    monkeypatch.setattr("bench.gpu.rows.serving", lambda op: ["triton", "cuda"])
    works = {(row.label, "triton"): [Work("k", 1, hbm=figures.HBM * 1e-3)]}
    monkeypatch.setattr(figures, "predicted", lambda: works)
    lines = [timed(row, "ours", 2), timed(row, "ours_cuda", 3), timed(row, "eager", 5)]
    results.write(tmp_path / "times.csv", [{**STAMP, **line} for line in lines])
    text = Record(tmp_path, STAMP, [row]).write()
    assert f"missed        {row.label}: 2 ms, goal <= 0.55, predicted 1" in text
    assert f"{row.label}, ours full: 2 ms, predicted 1" in text
    assert "ours_cuda full" not in text  # the model has nothing for it
    found = {r["what"]: r for r in results.read(tmp_path / "targets.csv")}
    assert found[f"{row.label}, against best eager"]["predicted"] == ""


def test_profile_lines():
    demangled = "void mcr::cuda::(anonymous namespace)::far_own_side_kernel<Team<32>, true>(int)"
    assert profile.short(demangled) == "far_own_side_kernel"
    assert profile.short("_own_side_kernel") == "_own_side_kernel"
    assert profile.short("sm90_xmma_gemm_bf16") == "sm90_xmma_gemm_bf16"
    case = {"op": "nt_xent", "case": "a", "provider": "ours"}
    expected = [Work("slow_kernel", 1, 1e9, 10.0, 1.0), Work("never_kernel", 1)]
    found = profile.lines(case, {"fast": (3, 1.5), "slow_kernel": (1, 400.0)}, expected)
    assert [line["kernel"] for line in found] == ["slow_kernel", "fast", "never_kernel"]
    assert (found[0]["us"], found[0]["slots"]) == ("400", "10")
    assert float(found[0]["predicted_us"]) == pytest.approx(353, rel=0.01)
    assert "predicted_us" not in found[1]
    assert found[2]["calls"] == "0"


def test_clocks_are_read_or_said_to_be_missing(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.clocks() == {"unit": "MHz", "detail": "not read: FileNotFoundError"}
    tool = tmp_path / "nvidia-smi"
    values = ("1980", "3201", "45", "300.5", "P0")
    tool.write_text(f"#!/bin/sh\necho '{', '.join(values)}'\n")
    tool.chmod(0o755)
    assert machine.clocks() == {
        "measured": "1980",
        "unit": "MHz",
        "detail": ", ".join(
            f"{name} {value}" for name, value in zip(machine.CLOCKS, values, strict=True)
        ),
    }


@pytest.mark.process("interpreted")
def test_probe():
    """Interpreted, the functions are precise."""
    from bench.gpu import probe

    found = list(probe.probe("cpu", every=1 << 14))
    assert len(found) == len(probe.FUNCTIONS) * (len(probe.EDGES) - 1)
    assert all(0 < float(row["measured"]) < 2**-21 for row in found)
    assert probe.floats(1.0, 2.0, "cpu").numel() == 2**23
    x = probe.floats(1.0, 2.0, "cpu", every=4096)
    off = probe.error(probe.LG2, x, x.double().log2().float() + 2.0**-20)
    assert math.isclose(float(off.mean()), 2.0**-20, rel_tol=1e-3)


def test_every_row_with_a_time_is_modelled():
    found = figures.predicted()
    assert {label for label, _ in found} == {row.label for row in ROWS}
    for works in found.values():
        assert sum(work.calls for work in works) > 0


def test_tables_of_the_docs_are_those_of_the_file(tmp_path):
    page = tmp_path / "model.md"
    shutil.copy(command.PAGE, page)
    assert table.write_tables(page, figures.PREDICTED.parent) == 2
    assert page.read_text() == command.PAGE.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nvcc"), reason="needs nvcc")
@pytest.mark.skipif(bool(processes.missing("emulated")), reason="needs the emulator")
def test_the_file_is_what_the_command_gives():
    kept = results.read(figures.PREDICTED)
    versions = {tool: command.version(tool) for tool in ("triton", "nvcc")}
    if any(kept[0][tool] != here for tool, here in versions.items()):
        pytest.skip(f"the file is of other compilers than {versions}")
    found = command.modelled(command.BACKENDS, [])
    assert found == kept


@pytest.mark.process("launched")
def test_the_probe_takes_the_instructions_that_it_names():
    import torch
    from launched import driver

    from bench.gpu import probe

    for name, (which, _) in probe.FUNCTIONS.items():
        notes = driver.Notes()
        with driver.noted(notes, name):
            probe.approximate(which, torch.ones(4096))
        (asked,) = notes.of("_approximate_kernel")
        assert f"{name}.f32" in asked.compile(90).ptx
