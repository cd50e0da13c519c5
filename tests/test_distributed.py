"""The contrastive losses over several processes equal one process on all rows, gradients too."""

import pytest
import rank_cases as cases
import torch
from rank_cases import CASES
from rank_tries import TRIES, tried
from ranks import run_in_ranks


def everything(rank, world):
    found = {"cases": cases.all_cases(rank, world)}
    for name, attempt in TRIES.items():
        found[name] = tried(attempt, rank, world)
    return found


@pytest.fixture(scope="module", params=[2, 4], ids=["2 ranks", "4 ranks"])
def found(request):
    """What each rank found."""
    return run_in_ranks(everything, request.param)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_one_process(case, found):
    close = 1e-9 if case.dtype == torch.float64 else 1e-5
    value, grads = cases.truth(case, len(found))
    for rank in found:
        ours, of_parameters = rank["cases"][case]
        assert ours == found[0]["cases"][case][0]
        assert ours == pytest.approx(value, rel=close, abs=close)
        for p, wanted in zip(of_parameters, grads, strict=True):
            p, wanted = (torch.tensor(x, dtype=torch.float64) for x in (p, wanted))
            torch.testing.assert_close(p, wanted, rtol=close, atol=close)


@pytest.mark.parametrize("name", TRIES)
def test_what_ranks_try(name, found):
    for rank in found:
        assert not rank[name], rank[name]
