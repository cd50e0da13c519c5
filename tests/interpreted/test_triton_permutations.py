"""Internals of Triton's launchers of permuted_divergence; tests/suite has all that callers see."""

import pytest
import torch
from divergences import make_batch, run
from mcr_fast.kernels import permuted_divergence as kernels
from mcr_fast.kernels._permutations import checked_permutations

pytestmark = pytest.mark.process("interpreted")


def test_permutations_cut_into_parts(monkeypatch):
    x = make_batch(2, 40, 6, count=7)
    assert kernels._parts(2, 7) == (7, 1)
    assert kernels._parts(300, 7) == (1, 7)
    cut = run(x, "triton")
    monkeypatch.setattr(kernels, "PROGRAMS", 1)
    whole = run(x, "triton")
    for a, b in zip(cut, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("rows", [1, 5, 4096, 4100])
def test_checked_permutations(rows):
    given = torch.rand(3, rows).argsort(-1)
    safe, inverse, _, poison = checked_permutations(given)
    assert torch.equal(safe, given)
    assert torch.equal(inverse, given.argsort(-1))
    assert poison == 0
    given[1, rows - 1] = given[1, 0] if rows > 1 else 1
    safe, inverse, _, poison = checked_permutations(given)
    assert poison.isnan()
    assert torch.equal(safe[1], torch.arange(rows))
    assert torch.equal(inverse, safe.argsort(-1))
