"""Every op on every backend: (case, check) by (case, check).

Ids read `cpu-permuted_divergence-M2_N9_C7_table-bound`, so that `-k "triton and row_divergence"` or
`-k not_finite` choose; all but the quick ones exist with --slow only. With `--device cuda` kernels
run on a GPU; else Triton's in its interpreter and the CUDA library's on the emulator, each in a
process of its own.
"""

import pytest
import torch

from mcr_fast.ops._limits import Call, Refusal, pairs_of
from mcr_fast.ops.registry import OPS
from suite import backends, behaviour, cases, checks
from suite.subjects import Subject


def pytest_generate_tests(metafunc):
    options, items = metafunc.config.option, []
    for on in backends.of_device(options.device):
        process = [pytest.mark.process(on.process)] if on.process else []
        for case in cases.every():
            quick = case.is_quick(on)
            marks = process if quick else [*process, pytest.mark.slow]
            if case.is_for(on) and (options.slow or quick):
                for check in behaviour.of_case(case.checks, on, case.thorough):
                    name = f"{on.name}-{case.op}-{case.name}-{checks.name_of(check)}"
                    items.append(pytest.param(on, case, check, id=name, marks=marks))
    metafunc.parametrize(("on", "case", "check"), items)


def refusal(subject: Subject, on: backends.Backend) -> Refusal | None:
    """What a GPU's backend takes of the op, where that is not this input.

    The emulator's kernels are called whatever Python would choose.
    """
    if on.device == "cpu" or subject.op != "permuted_divergence":
        return None
    contributions, _, *arguments, _ = subject.op_arguments(False)
    modalities, rows, classes = contributions.shape
    pairs = pairs_of(rows, tuple(arguments))
    return OPS[subject.op].refusal(on.name, Call(classes, modalities=modalities, pairs=pairs))


def test_suite(on, case, check, monkeypatch):
    reason = on.unavailable()
    if reason:
        pytest.skip(reason)
    for name, value in case.emulator.items():
        monkeypatch.setenv(f"MCR_EMULATED_{name}", str(value))
    subject = case.make().map(lambda t: t.to(on.device))
    if limit := refusal(subject, on):
        pytest.skip(f"{on.name} takes {limit[0]}, got {limit[1]}")
    with on.active():
        check(subject, on)
    if on.device == "cuda":
        torch.cuda.synchronize()
