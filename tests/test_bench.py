"""The benchmark harness: every provider computes the same thing, results are written and compared."""

import csv
from dataclasses import replace

import pytest
import torch

pytest.importorskip("pytorch_metric_learning")
pytest.importorskip("tabulate")

from bench import registry
from bench.inputs import make_inputs
from bench.registry import STEMS, benchmarks
from mcr_fast.ops import OPS

# Every code path of the eager and published formulations, on a size that takes no time.
CASES = [
    (stem, replace(case, N=min(case.N, n), D=16, C=min(case.C, 5) or case.C, K=min(case.K, 3)))
    for stem in STEMS
    for case in {(c.dtype, c.donors, c.start, c.M): c for c in benchmarks()[stem].cases}.values()
    # the contrastive formulations change with the number of rows
    for n in ((7, 150) if stem in ("nt_xent", "sup_con") else (7,))
]


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
