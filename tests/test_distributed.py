"""The contrastive losses over several processes equal one process on all rows, gradients too."""

import pytest
import rank_cases as cases
import torch
import torch.distributed as dist
from rank_cases import CASES
from rank_tries import TRIES, tried
from ranks import run_in_ranks

from mcr_fast import MCRLoss, NTXentLoss, functional

pytestmark = pytest.mark.process("beside")


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


EMBEDDINGS = [torch.eye(2), torch.eye(2)]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"exchange": "all"}, "exchange must be one of 'gather', 'ring', got 'all'"),
        ({"rows": 0}, "rows must be at least 1, got 0"),
        ({"rows": 1.5}, "rows must be int, got float"),
        ({"process_group": "world"}, "must be a torch.distributed.ProcessGroup or a DeviceMesh"),
    ],
)
def test_bad_options(options, said):
    for make in (
        lambda: functional.nt_xent(EMBEDDINGS, **options),
        lambda: functional.sup_con(EMBEDDINGS, **options),
        lambda: NTXentLoss(**options),
        lambda: MCRLoss([2, 2], 3, **options),
    ):
        with pytest.raises((ValueError, TypeError), match=said):
            make()


def test_a_group_that_is_gone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    group = dist.group.WORLD
    assert functional.nt_xent(EMBEDDINGS, process_group=group) == functional.nt_xent(EMBEDDINGS)
    dist.destroy_process_group()
    with pytest.raises(RuntimeError, match="process_group is not known to torch.distributed"):
        functional.nt_xent(EMBEDDINGS, process_group=group)
