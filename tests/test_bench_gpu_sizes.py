"""The table of sizes of `python -m bench gpu`, and the choice of backend it gives; no GPU."""

import itertools

import pytest
import torch

pytest.importorskip("triton")

from test_bench_goals import timed

from bench.gpu.rows import call_of, providers
from bench.gpu.sizes import (
    COLUMNS,
    SIZE_ROWS,
    choice,
    disagreements,
    markdown,
    size_of,
    table,
)
from mcr_fast.ops import _backend, registry
from mcr_fast.ops._limits import Call
from mcr_fast.ops.registry import OPS as OPS_ROWS
from mcr_fast.ops.registry import with_kernels

OPS = with_kernels("triton")
CYCLIC = next(row for row in SIZE_ROWS if row.case.donors == "cyclic")
MIPD = [row for row in SIZE_ROWS if row.case.op == "permuted_divergence"]


def lines_of(times):
    """(row, provider) -> milliseconds, as measured lines."""
    return [timed(row, provider, ms) for (row, provider), ms in times.items()]


def test_sizes_cover_every_op():
    assert {row.case.op for row in SIZE_ROWS} == set(OPS)
    assert len({(row.case.op, row.case.name) for row in SIZE_ROWS}) == len(SIZE_ROWS)
    assert {row.case.C for row in MIPD} == {6, 28, 101, 174, 1000}
    for op, dtype in itertools.product(("nt_xent", "sup_con"), ("float32", "bfloat16")):
        found = [row.case for row in SIZE_ROWS if (row.case.op, row.case.dtype) == (op, dtype)]
        assert [case.L for case in found] == [64, 512, 1024, 4096, 32768]
    assert all(row.modes_of("ours_cuda") == ("full",) for row in SIZE_ROWS)
    for op in OPS:
        assert any(row.quick for row in SIZE_ROWS if row.case.op == op)


def test_providers_are_named_by_their_backends(monkeypatch):
    monkeypatch.setattr("bench.gpu.rows.serving", lambda op: ["triton", "cuda"])
    names = [provider.name for provider in providers(CYCLIC)]
    assert names == ["ours_cuda", "ours_triton", "eager", "compile"]
    # no table of donors but a small one
    names = [provider.name for provider in providers(MIPD[0])]
    assert names == ["ours_triton", "eager", "compile"]
    monkeypatch.setattr("bench.gpu.rows.serving", lambda op: ["triton"])
    names = [provider.name for provider in providers(CYCLIC)]
    assert names == ["ours_triton", "eager", "compile"]


def test_backends_are_timed_where_they_take_a_size():
    of_cuda = {row.case for row in SIZE_ROWS if taken_by("cuda", row.case)}
    assert {row.case for row in SIZE_ROWS if taken_by("triton", row.case)} > of_cuda
    assert {case.op for case in of_cuda} == {"permuted_divergence", "nt_xent", "sup_con"}
    assert {case.L for case in of_cuda if case.op == "nt_xent"} == {64, 512, 1024}
    mipd = {(case.N, case.donors, case.C) for case in of_cuda if case.K}
    assert mipd == {(n, "cyclic", c) for n in (4096, 128) for c in (6, 28, 101, 174, 1000)}


def test_table():
    first, second, third = MIPD[:3]
    times = {(first, "ours_cuda"): 0.25, (first, "ours_triton"): 0.5, (first, "eager"): 4}
    times |= {(second, "ours_triton"): 3, (second, "compile"): 2}
    lines = lines_of(times)
    lines.append({**lines[0], "mode": "fwd", "provider": "eager", "p50_ms": "0.01"})
    lines.append({**lines[0], "op": "row_divergence", "provider": "compile", "p50_ms": "0.01"})
    found = table([first, second, third], lines)
    assert [[row[f"{name}_ms"] for name in COLUMNS] for row in found] == [
        ["0.25", "0.5", "", "4"],
        ["", "3", "2", ""],
        [""] * 4,
    ]
    assert [row["fastest"] for row in found] == ["cuda", "compile", "not run"]
    assert [row["of ours"] for row in found] == ["cuda", "", ""]
    text = markdown(found).splitlines()
    assert text[0].split(" | ")[2:6] == [f"{name}, ms" for name in COLUMNS]
    assert text[2].endswith("| 0.25 | 0.5 | - | 4 | cuda | cuda |")
    assert text[4].endswith("| - | - | - | - | not run | - |")
    assert len({line.count("|") for line in text}) == 1


def taken_by(backend, case):
    row = OPS_ROWS[case.op]
    return backend in row.backends and row.refusal(backend, call_of(case)) is None


def by_size(ratio_of):
    """The table of all sizes where Triton takes so many times as long as CUDA C++, if both can."""
    times = {}
    for row in SIZE_ROWS:
        times[row, "ours_triton"] = ratio_of(row.case)
        if taken_by("cuda", row.case):
            times[row, "ours_cuda"] = 1
    return table(SIZE_ROWS, lines_of(times))


def test_choice_is_what_the_backends_read(monkeypatch):
    def ratio(case):
        if case.op == "nt_xent":
            return 0.8
        # CUDA C++ wins up to 101 classes; at 174 it loses more at one size than it wins at another
        if case.C == 174 and case.N == 128:
            return 0.5
        return {6: 2, 28: 1.5, 101: 1.1, 174: 1.2, 1000: 0.9}.get(case.C, 1)

    text = choice(SIZE_ROWS, by_size(ratio))
    chosen = eval(text.removeprefix("CHOICE = "))
    assert chosen["permuted_divergence"] == (
        (101, ("cuda", "triton")),
        (None, ("triton", "cuda")),
    )
    assert chosen["nt_xent"] == ((None, ("triton", "cuda")),)
    assert set(chosen) == set(registry.CHOICE)  # where there is a choice
    monkeypatch.setattr(registry, "CHOICE", chosen)
    assert registry.preferred("permuted_divergence", 101) == ("cuda", "triton")
    assert registry.preferred("permuted_divergence", 102) == ("triton", "cuda")
    assert choice(SIZE_ROWS, table(SIZE_ROWS, [])) == ""


def test_choice_by_rows_and_dtype(monkeypatch):
    def ratio(case):
        if case.op == "nt_xent" and case.dtype == "float32":
            return 2 if case.L <= 512 else 0.5
        return 0.5

    found = by_size(ratio)
    chosen = eval(choice(SIZE_ROWS, found).removeprefix("CHOICE = "))
    small, large = ("cuda", "triton"), ("triton", "cuda")
    assert chosen["nt_xent"] == ((512, small), (None, large))
    assert chosen["nt_xent 16-bit"] == chosen["sup_con"] == ((None, large),)
    assert "sup_con 16-bit" not in chosen  # no other than in float32
    assert disagreements(SIZE_ROWS, found) == ""

    monkeypatch.setattr(registry, "CHOICE", chosen)
    monkeypatch.setattr(_backend, "_UNAVAILABLE", {op: {} for op in OPS})

    def taken(op, dtype, size):
        return _backend.resolve(op, None, torch.device("cuda"), dtype, call=Call(size))

    assert [taken("nt_xent", torch.float32, size) for size in (512, 513)] == ["cuda", "triton"]
    assert taken("nt_xent", torch.float32, None) == "cuda"
    assert {taken("nt_xent", dtype, 512) for dtype in (torch.bfloat16, torch.float16)} == {"triton"}
    assert taken("sup_con", torch.float16, 512) == "triton"
    # a number of rows is no number of classes, of which there is a most
    assert taken("nt_xent", torch.float32, 10**6) == "triton"
    assert taken("nt_xent", torch.float64, 512) == "reference"


def test_sizes_that_do_not_agree_are_printed():
    found = by_size(lambda case: 0.5 if case.N == 4096 and case.C == 28 else 1.25)
    (line,) = disagreements(SIZE_ROWS, found).splitlines()
    names = [row.case.name for row in MIPD if row.case.C == 28 and row.case.donors == "cyclic"]
    assert line == (
        f"permuted_divergence C=28, triton in CHOICE: {names[0]} triton 2.00x, "
        f"{names[1]} cuda 1.25x"
    )
    assert disagreements(SIZE_ROWS, table(SIZE_ROWS, [])) == ""


def test_what_is_counted():
    counted = {row.case.op: size_of(row.case) for row in SIZE_ROWS}
    assert counted["nt_xent"] == counted["sup_con"] == ("L", 32768)
    assert counted["permuted_divergence"] == ("C", 1000)
