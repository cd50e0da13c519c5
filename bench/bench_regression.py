"""Ours on the quick case of every op by pytest-benchmark: `pytest bench --benchmark-only`."""

import pytest

from bench.case import Case
from bench.inputs import make_inputs
from bench.registry import MODES, benchmarks
from bench.timer import step

CASES = [case for each in benchmarks().values() for case in each.cases if case.quick]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.op}-{case.name}")
@pytest.mark.parametrize("mode", MODES)
def test_ours(benchmark, case: Case, mode: str) -> None:
    inputs = make_inputs(case)
    ours = step(benchmarks()[case.op].provider("ours").forward(inputs), inputs.leaves(), mode)
    ours.seconds()
    benchmark.extra_info["case"] = case.name
    benchmark.pedantic(
        ours.call, setup=lambda: ((ours.setup(),), {}), rounds=50, iterations=1, warmup_rounds=5
    )
