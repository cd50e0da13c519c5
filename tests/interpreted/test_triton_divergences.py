"""What is inside of Triton's launchers of the divergences; tests/suite has all that callers see."""

import functools

import divergences
import pytest
import torch
from divergences import call, make_batch
from tiers import sample

from mcr_fast._names import OF_LOGITS
from mcr_fast.kernels import config
from mcr_fast.kernels import permuted_divergence as kernels
from mcr_fast.kernels.pairs.permutations import checked_permutations
from mcr_fast.kernels.row_divergence import row_divergence_fwd

pytestmark = pytest.mark.process("interpreted")
run = functools.partial(divergences.run, backend="triton")


def test_permutations_cut_into_parts(monkeypatch):
    x = make_batch(2, 17, 6, count=3)
    assert config.parts(2, 3) == (3, 1)
    assert config.parts(300, 3) == (1, 3)
    cut = run(x)
    monkeypatch.setattr(config, "PROGRAMS", 1)
    whole = run(x)
    for a, b in zip(cut, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("divergence", sample(OF_LOGITS, 2))
def test_no_pair_is_below_0(divergence, monkeypatch):
    """Rows a rounding apart: what one pair has too little is not taken from another's."""
    x = make_batch(2, 5, 6, "table", count=6, bias=False)
    x.contributions = 1 + 1e-7 * x.contributions
    ways = (functools.partial(run, x), lambda **o: [call(x, "triton", **o)])
    assert config.parts(1, 6) == (6, 1)
    pair_by_pair = [way(divergence=divergence)[0] for way in ways]
    monkeypatch.setattr(config, "PROGRAMS", 1)  # a program has all pairs of its rows
    row_by_row = [way(divergence=divergence)[0] for way in ways]
    torch.testing.assert_close(row_by_row, pair_by_pair, rtol=1e-5, atol=0)


NAMES = {"strategy": "selfish", "clean_path": "cut", "divergence": "kl", "exclude": "all"}


@pytest.mark.parametrize("name", NAMES)
def test_unknown_names_are_refused(name):
    known = {"strategy": "greedy", "clean_path": "shared", "divergence": "jsd", "exclude": "none"}
    x, bias = torch.randn(2, 4, 3), torch.zeros(3)
    given = [x, bias, None, None, None, None, None, [1, 2], *(known | {name: NAMES[name]}).values()]
    message = f"{name} must be one of '{known[name]}'.*, got '{NAMES[name]}'"
    with pytest.raises(ValueError, match=message):
        kernels.permuted_divergence_fwd(*given, False)
    with pytest.raises(ValueError, match=message):
        kernels.permuted_divergence_bwd(torch.ones(2), x, bias, *given)
    if name == "divergence":
        with pytest.raises(ValueError, match=message):
            row_divergence_fwd(x[0], x[1], torch.arange(4), None, "kl", False)


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
