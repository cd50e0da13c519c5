"""The list of cases has what it must have, and the checks fail what is wrong."""

import pytest
import torch
from divergences import options_of

from mcr_fast.ops.registry import OPS, with_kernels
from suite import backends, cases, checks

# of csrc/permuted_divergence/cuda/far.cu: the most classes of each team
FAR_TEAMS = (8, 32, 64, 112, 128, 192, 256, 384, 512, 768, 1024)


@pytest.mark.parametrize("op", [*with_kernels("triton"), "gather_add"])
def test_every_op_has_its_cases(op):
    found = [case for case in cases.every() if case.op == op]
    for on in backends.ON_THE_HOST:
        if on.argument == "triton" or (op in OPS and on.name in cases.KERNELS):
            here = [case for case in found if case.is_for(on) and case.is_quick(on)]
            names = {checks.name_of(check) for case in here for check in case.checks}
            assert len(here) >= 2
            assert names >= {"bound", "not_finite", "repeat"}, on.name
    assert any("production" in case.name for case in found)


def test_far_pairs_are_large_enough_and_of_every_team():
    found, features = {True: set(), False: set()}, set()
    for case in cases.every():
        if case.op != "permuted_divergence" or not case.name.startswith("far_M"):
            continue
        subject = case.make()
        x = subject.inputs
        _, rows, classes = x.contributions.shape
        permutations = rows - 1 if x.donors is None else x.donors.shape[1]
        elements = 2 * rows * permutations * classes
        assert len(options_of(x, **subject.options)["subsets"]) == 2
        assert case.backends == ("cuda",)
        assert elements >= 2**20
        assert elements < 1.1 * 2**20 or rows > 3000 or x.donors is None
        teams = [most for most in FAR_TEAMS if classes <= most]
        if classes <= 112 and rows <= 8192:
            teams = [most for most in teams if most != 112]
        cyclic = x.order is not None
        if x.donors is not None and "scale" not in case.name and x.present is None:
            assert len(x.donors) == 1
            found[cyclic].add(teams[0])
        scheme = "exhaustive" if x.donors is None else "cyclic" if cyclic else "table"
        kinds = {
            str(x.contributions.dtype),
            *(w for w in ("scale0.01", "scale0.17") if w in case.name),
        }
        features |= {
            (scheme, kind) for kind in kinds | ({"masked"} if x.present is not None else set())
        }
    assert found == {True: set(FAR_TEAMS), False: set(FAR_TEAMS)}  # shifts, and tables
    kinds = ("torch.float32", "torch.bfloat16", "torch.float16", "scale0.01", "scale0.17", "masked")
    assert features >= {(scheme, kind) for scheme in ("table", "cyclic") for kind in kinds}
    assert any(scheme == "exhaustive" for scheme, _ in features)


# harm done to what row_divergence_fwd returns: (the case, the checks that find it, the statement)
HARMS = {
    "value": ("", "bound strided", "value = value * 1.00001"),
    "gradient": ("", "bound strided", "rest[1] = rest[1].clone(); rest[1][3, 2] += 1e-4"),
    "unwritten": ("", "bound", "rest[1] = rest[1].new_empty(rest[1].shape)"),
    "not_repeatable": ("", "repeat", "value = value + 1e-3 * torch.rand(())"),
    "finite": ("bad", "not_finite", "value = value.nan_to_num()"),
}


@pytest.mark.process("interpreted")
@pytest.mark.parametrize("name", HARMS)
def test_checks_fail_what_is_wrong(name, monkeypatch):
    from mcr_fast.kernels import row_divergence as kernel
    from suite.subjects import Divergence

    on = next(b for b in backends.ON_THE_HOST if b.name == "triton")
    on_a_gpu = backends.Backend("triton", "triton", device="cuda")  # where strided has a bound
    _, found, statement = HARMS[name]
    checked = [getattr(checks, check) for check in found.split()]
