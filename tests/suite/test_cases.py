"""The list of cases has what it must have, and the checks fail what is wrong."""

import pytest
import torch

from bench.gpu.sanitize import MORE
from mcr_fast.ops.registry import OPS, with_kernels
from suite import backends, behaviour, cases, checks
from suite.backends import Backend
from suite.test_suite import refusal


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


def test_cuda_cases_of_a_gpu_are_of_both_regimes():
    """Small batches, and bands of cyclic and exhaustive donors; the others are skipped there."""
    on = next(b for b in backends.ON_A_GPU if b.name == "cuda")
    found = [c for c in cases.every() if c.op == "permuted_divergence" and c.is_for(on)]
    found = [c for c in found if c.is_quick(on) or c.name.startswith(("band_", "production"))]
    names = [c.name for c in found]
    assert not [c.name for c in found if refusal(c.make(), on) is not None]
    for start in ("band_M2_N701_C50_window", "band_M2_N600", "production_M2_N4096_C174_cyclic"):
        assert any(name.startswith(start) for name in names), start
    assert any("exhaustive" in name for name in names if name.startswith("band_"))
    assert not any("table" in name for name in names if name.startswith(("band_", "production")))
    assert any("M8" in name for name in names)


# harm done to what row_divergence returns: the case, the checks that find it, the statement
HARMS = {
    "value": ("quick", "bound strided", "value = value * 1.00001"),
    "gradient": ("quick", "bound strided", "rest[2] = rest[2].clone(); rest[2][2, 2] += 1e-4"),
    "notes": ("quick", "bound strided", "rest[1] = rest[1].clone(); rest[1][3, 2] += 1e-2"),
    "unwritten": ("quick", "bound", "rest[2] = rest[2].new_empty(rest[2].shape)"),
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
