"""The list of cases has what it must have, and the checks fail what is wrong."""

import pytest
import torch
from divergences import options_of

from bench.gpu.sanitize import MORE
from mcr_fast.ops.registry import OPS, with_kernels
from suite import backends, behaviour, cases, checks
from suite.backends import Backend
from suite.test_suite import refusal

# of csrc/permuted_divergence/cuda/far.cu: the most classes of each team, some for many rows only
FAR_TEAMS = (8, 32, 64, 112, 128, 192, 256, 384, 512, 768, 1024)
FEWEST_ROWS = {112: 8192, 192: 4096, 384: 2048}


# an op that is made of another one has a test of its own
@pytest.mark.parametrize("op", [*(op for op in OPS if not OPS[op].made_of), "gather_add"])
def test_every_op_has_its_cases(op):
    served = OPS[op].backends if op in OPS else ("triton",)
    found = [case for case in cases.every() if case.op == op]
    assert any("production" in case.name for case in found) or "triton" not in served
    for on in backends.ON_THE_HOST:
        if on.name in served:
            here = [case for case in found if case.is_for(on) and case.is_quick(on)]
            names = {checks.name_of(check) for case in here for check in case.checks}
            assert len(here) >= 2, on.name
            assert names >= {"bound", "not_finite", "repeat"}, on.name


@pytest.mark.parametrize("op", with_kernels("triton"))
def test_compute_sanitizer_watches_more_than_the_quick_cases(op):
    found = [case for case in cases.every() if MORE.fullmatch(f"{case.op}/{case.name}")]
    assert any(case.op == op and case.thorough for case in found)


def test_far_pairs_are_large_enough_and_of_every_team():
    teams, kinds = set(), set()
    for case in cases.every():
        if case.op != "permuted_divergence" or not case.name.startswith("far_"):
            continue
        if case.emulator or case.here:  # small twins on the emulator
            continue
        subject = case.make()
        x = subject.inputs
        _, rows, classes = x.contributions.shape
        permutations = rows - 1 if x.donors is None else x.donors.shape[1]
        elements = 2 * rows * permutations * classes
        assert len(options_of(x, **subject.options)["subsets"]) == 2
        assert x.donors is None or len(x.donors) == 1
        assert case.backends == ("cuda",)
        assert elements >= 2**20
        assert elements < 1.1 * 2**20 or rows > 3000 or x.donors is None
        fit = [t for t in FAR_TEAMS if classes <= t and rows >= FEWEST_ROWS.get(t, 0)]
        scheme = next(s for s in ("table", "cyclic", "exhaustive") if s in case.name)
        kinds |= {(scheme, word) for word in case.name.split("_")}
        if "scale" not in case.name and x.present is None:
            teams.add(fit[0])
    assert teams == set(FAR_TEAMS)
    words = ("float32", "bfloat16", "float16", "scale0.01", "scale0.17", "present")
    assert kinds >= {(scheme, word) for scheme in ("table", "cyclic") for word in words}
    assert ("exhaustive", "far") in kinds


def test_cuda_cases_of_a_gpu_are_of_both_regimes():
    """Small batches, and bands of cyclic and exhaustive donors; the others are skipped there."""
    on = next(b for b in backends.ON_A_GPU if b.name == "cuda")
    found = [c for c in cases.every() if c.op == "permuted_divergence" and c.is_for(on)]
    found = [c for c in found if c.is_quick(on) or c.name.startswith(("far_", "production"))]
    taken = [c.name for c in found if refusal(c.make(), on) is None]
    assert len(found) > len(taken) > len(found) // 2
    for start in ("far_M2_N701_C50_cyclic", "far_M2_N", "production_M2_N4096_C174_cyclic"):
        assert any(name.startswith(start) for name in taken), start
    assert any("exhaustive" in name for name in taken if name.startswith("far_"))
    assert not any("table" in name for name in taken if name.startswith(("far_", "production")))
    assert any("M8" in name for name in taken)


# harm done to what row_divergence_fwd returns: the case, the checks that find it, the statement
HARMS = {
    "value": ("quick", "bound strided", "value = value * 1.00001"),
    "gradient": ("quick", "bound strided", "rest[1] = rest[1].clone(); rest[1][3, 2] += 1e-4"),
    "unwritten": ("quick", "bound", "rest[1] = rest[1].new_empty(rest[1].shape)"),
    "not_repeatable": ("quick", "repeat", "value = value + 1e-3 * torch.rand(())"),
    "finite": ("bad", "not_finite", "value = value.nan_to_num()"),
}


@pytest.mark.process("interpreted")
@pytest.mark.parametrize("name", HARMS)
def test_checks_fail_what_is_wrong(name, monkeypatch):
    from mcr_fast.kernels import row_divergence as kernel

    start, found, statement = HARMS[name]
    all_cases = (c for c in cases.every() if c.op == "row_divergence")
    subject = next(c for c in all_cases if c.name.startswith(start)).make()
    # strided has a bound on a GPU alone
    device = "cuda" if "strided" in found else "cpu"
    on = Backend("triton", "triton", "interpreted", device=device)
    right = kernel.row_divergence_fwd

    def harmed(*arguments):
        value, *rest = right(*arguments)
        names = {"torch": torch, "value": value, "rest": rest}
        exec(statement, names)
        return names["value"], *rest

    chosen = [{**vars(checks), **vars(behaviour)}[check] for check in found.split()]
    for check in chosen:
        check(subject, on)
    monkeypatch.setattr(kernel, "row_divergence_fwd", harmed)
    for check in chosen:
        with pytest.raises(AssertionError):
            check(subject, on)
