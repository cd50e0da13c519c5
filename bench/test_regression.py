"""What the pytest-benchmark entry of every op does; `pytest bench --benchmark-only` runs them."""

from typing import Any

from bench.inputs import make_inputs
from bench.registry import Benchmark, Case
from bench.timer import contestant


def regression(benchmark: Any, of: Benchmark, case: Case, mode: str) -> None:
    """Time our provider on one case with pytest-benchmark."""
    inputs = make_inputs(case)
    ours = contestant(of.provider("ours").forward(inputs), inputs.leaves(), mode)
    ours.call()
    benchmark.extra_info["case"] = case.name
    benchmark.pedantic(
        ours.step, setup=lambda: ((ours.setup(),), {}), rounds=50, iterations=1, warmup_rounds=5
    )
