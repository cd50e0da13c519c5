"""The checks of `python -m bench gpu`: they find what is wrong, and a crash costs one case."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from time import monotonic

import pytest
import torch

pytest.importorskip("triton")

from bench.gpu import subjects
from bench.gpu.cases import check_cases
from bench.gpu.check import ANYWHERE, ON_A_GPU, checks_of, run_only, verify
from bench.gpu.processes import run_checks
from bench.gpu.shared import divergences
from mcr_fast.ops.registry import with_kernels

OPS = with_kernels("triton")
ROOT = Path(__file__).resolve().parent.parent


def test_every_op_has_its_cases():
    cases = check_cases().values()
    for op in (*OPS, "gather_add"):
        names = [case.name for case in cases if case.op == op]
        assert len(set(names)) == len(names)
        assert sum(case.quick for case in cases if case.op == op) >= 2
        assert {name.rsplit("_", 1)[-1] for name in names} >= {"nan", "inf"}
    assert all(case.key == key for key, case in check_cases().items())


def test_cases_can_be_made():
    for case in check_cases().values():
        if "production" not in case.name:
            subject = case.make()
            assert subject.upstream().dtype == torch.float32
            finite = all(t.isfinite().all() for t in subject.tensors() if t.is_floating_point())
            assert finite is not case.poisoned


# of csrc/permuted_divergence/cuda/far.cu, with_far_team: the most classes of each team
FAR_TEAMS = (8, 32, 64, 112, 128, 192, 256, 384, 512, 768, 1024)


def far_cases():
    """name -> (subject, subsets * N * K * C)"""
    for case in check_cases().values():
        if case.op == "permuted_divergence" and case.name.startswith("far_"):
            subject = case.make()
            x = subject.inputs
            _, n, c = x.contributions.shape
            permutations = n - 1 if x.donors is None else x.donors.shape[1]
            yield case, subject, 2 * n * permutations * c


def test_far_pairs_are_large_enough_and_of_every_team():
    found = {True: set(), False: set()}
    for case, subject, elements in far_cases():
        x = subject.inputs
        rows, classes = x.contributions.shape[1:]
        assert len(divergences.options_of(x, **subject.options)["subsets"]) == 2
        assert x.donors is None or len(x.donors) == 1
        assert elements >= 2**20
        assert elements < 1.1 * 2**20 or rows > 3000 or "exhaustive" in case.name
        assert case.backends == ("cuda",)
        teams = [most for most in FAR_TEAMS if classes <= most]
        if classes <= 112 and rows <= 8192:
            teams = [most for most in teams if most != 112]
        if case.name.startswith("far_N"):
            found[x.order is None].add(teams[0])
    assert found == {True: set(FAR_TEAMS), False: set(FAR_TEAMS)}  # tables, and shifts


def test_far_pairs_are_of_every_dtype_and_kind():
    names = [case.name for case, _, _ in far_cases()]
    for word in ("float32", "bfloat16", "float16", "near", "mixed", "masked", "exhaustive"):
        for scheme in ("table", "cyclic") if word != "exhaustive" else ("",):
            assert any(f"_{word}" in name and scheme in name for name in names), (word, scheme)


def test_stripes_of_rows():
    # csrc/contrastive/cuda/similarities.cpp: float32 similarities of a stripe take 64 MiB
    for op in ("nt_xent", "sup_con"):
        for dtype in ("float32", "bfloat16", "float16", "tf32"):
            rows = len(check_cases()[f"{op}/stripes_{dtype}"].make().x)
            assert rows > 2**26 / (4 * rows)


@pytest.mark.parametrize("op", ["nt_xent", "sup_con"])
def test_products_in_tf32_are_held_to_those_of_torch(op, monkeypatch):
    seen = []

    def loss(*arguments, backend, **options):
        seen.append((backend, torch.get_float32_matmul_precision()))
        # as tf32 would: operands with 10 bits behind the point, in ours and in plain torch alike
        x, *rest = arguments
        if x.dtype == torch.float32 and (backend == "tf32" or seen[-1][1] == "high"):
            x = x + (x.half() - x).detach()
        if backend == "wrong":
            x = x + (x.bfloat16() - x).detach()
        return right(x, *rest, backend="reference", **options)

    right = subjects.CONTRASTIVE[op]
    monkeypatch.setitem(subjects.CONTRASTIVE, op, loss)
    subject = check_cases()[f"{op}/tf32"].make()
    subject.check("tf32")
    assert {precision for _, precision in seen} == {"high"}
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(AssertionError):
        subject.check("wrong")
    # a backend that rounds so is wrong where nobody asked for it
    monkeypatch.setattr(subjects, "product_precision", lambda _: contextlib.nullcontext())
    with pytest.raises(AssertionError):
        subject.check("tf32")


def test_a_gpu_gets_all_checks():
    case = check_cases()["nt_xent/L65_D37_C6"]
    assert checks_of(case, "cpu") == ANYWHERE
    assert checks_of(case, "cuda") == ANYWHERE + ON_A_GPU


@pytest.mark.parametrize("key", ["nt_xent/L65_D37_C6", "gather_add/M3_N19_H33_gelu"])
def test_run_alone_for_whoever_watches(key):
    row = verify(check_cases()[key], "reference", "cpu", (run_only,))
    assert (row["checks"], row["passed"], row["detail"]) == ("run_only", "yes", "")
    row = verify(check_cases()[key], "cuda", "cpu", (run_only,))
    assert row["passed"] == "no"
    assert "backend='cuda'" in row["detail"]


ROWS, LOSS = "row_divergence/R7_N3_C7", "reconstruction_loss/N7_D3_17_64_float32"
NAN = "row_divergence/R64_N16_C8_nan"
# harm done to what row_divergence_fwd returns: (the case, the checks that find it, the statement)
HARMS = {
    "value": (ROWS, "bound strided", "value = value * 1.00001"),
    "gradient": (ROWS, "bound strided", "rest[1] = rest[1].clone(); rest[1][3, 2] += 1e-4"),
    "unwritten": (ROWS, "bound", "rest[1] = rest[1].new_empty(rest[1].shape)"),
    "not_repeatable": (ROWS, "repeat", "value = value + 1e-3 * torch.rand(())"),
    "finite": (NAN, "not_finite", "value = value.nan_to_num()"),
}
CHECK = """
import sys, torch
from pathlib import Path
from bench.gpu import check
from mcr_fast.kernels import row_divergence as kernel

right = kernel.row_divergence_fwd

def harmed(statement):
    def launch(*arguments):
        value, *rest = right(*arguments)
        names = {{"torch": torch, "value": value, "rest": rest}}
        exec(statement, names)
        return names["value"], *rest
    return launch

def run(name, *cases):
    sys.argv = ["check", str(Path({folder!r}) / name), "--device", "cpu", "--cases", *cases]
    print(name, check.main())

run("right", {rows!r}, {loss!r}, "nt_xent/L0", {nan!r})
for name, (case, _, statement) in {harms!r}.items():
    kernel.row_divergence_fwd = harmed(statement)
    run(name, case, {loss!r})
"""


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory):
    """Exit codes and rows of checks on the CPU, with Triton's interpreter, right and harmed."""
    folder = tmp_path_factory.mktemp("checks")
    code = CHECK.format(folder=str(folder), rows=ROWS, loss=LOSS, nan=NAN, harms=HARMS)
    ended = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    codes = dict(line.split() for line in ended.stdout.splitlines())
    lines = {name: (folder / name).read_text().splitlines() for name in codes}
    return {name: (int(codes[name]), [*map(json.loads, lines[name])]) for name in codes}


def test_checks_pass_what_is_right(interpreted):
    code, rows = interpreted["right"]
    assert [row["passed"] for row in rows] == ["yes"] * 4, rows
    assert [row["checks"] for row in rows] == ["bound repeat strided"] * 3 + ["not_finite"]
    assert code == 0


@pytest.mark.parametrize("name", HARMS)
def test_checks_fail_what_is_wrong(name, interpreted):
    code, rows = interpreted[name]
    assert code == 1
    assert [row["passed"] for row in rows] == ["no", "yes"], rows
    found = {part.split(":")[0] for part in rows[0]["detail"].split(" | ")}
    assert found >= set(HARMS[name][1].split()), rows[0]["detail"]


WORKER = """
import json, os, sys, time
path, *cases = sys.argv[1:]
for case in cases:
    if "crash" in case:
        print("illegal memory access", file=sys.stderr, flush=True)
        os.abort()
    if "hang" in case:
        time.sleep(60)
    with open(path, "a") as file:
        passed = "no" if "wrong" in case else "yes"
        file.write(json.dumps({"key": case, "op": "op", "case": case, "passed": passed}) + "\\n")
    if "wrong" in case:
        sys.exit(1)  # as after an error that takes the device
"""


def run_workers(tmp_path, keys, workers, seconds):
    def worker(path, cases):
        return [sys.executable, "-c", WORKER, str(path), *cases]

    rows = run_checks(keys, worker, tmp_path, workers, monotonic() + seconds)
    return [row["passed"] for row in rows], rows


def test_a_crash_costs_one_case(tmp_path):
    keys = ["op/a", "op/b", "op/crash", "op/wrong", "op/c", "op/crash2", "op/d"]
    passed, rows = run_workers(tmp_path, keys, 2, 60)
    assert passed == ["yes", "yes", "no", "no", "yes", "no", "yes"]
    assert "illegal memory access" in rows[2]["detail"]


def test_a_hang_ends_at_the_deadline(tmp_path):
    start = monotonic()
    passed, rows = run_workers(tmp_path, ["op/a", "op/hang", "op/b"], 1, 3)
    assert passed == ["yes", "not run", "not run"]
    assert "not finished in time" in rows[1]["detail"]
    assert monotonic() - start < 30


def test_a_process_that_cannot_start_is_wrong(tmp_path):
    keys = ["op/a", "op/b"]
    rows = run_checks(
        keys,
        lambda path, cases: [sys.executable, "-c", "import nothing_of_this_name"],
        tmp_path,
        1,
        monotonic() + 60,
    )
    assert [row["passed"] for row in rows] == ["no", "no"]
    assert "nothing_of_this_name" in rows[0]["detail"]
