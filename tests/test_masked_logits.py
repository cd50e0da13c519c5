"""Masked and infinite logits above the ops; tests/suite has those of the ops (masks.py)."""

import pytest
import torch
from divergences import make_rows
from masks import MASKS, SIZE
from tolerances import check_gradient

from mcr_fast import functional
from mcr_fast._names import OF_LOGITS


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("divergence", OF_LOGITS)
def test_masked_linear_layer(mask, divergence):
    g = torch.Generator().manual_seed(0)
    latents = [torch.randn(16, 4, generator=g) for _ in range(2)]
    weight, bias = torch.randn(5, 8, generator=g), torch.randn(5, generator=g)
    bias[2] = mask
    results = []
    for dtype, backend in ((torch.float32, "cpu"), (torch.float64, "reference")):
        leaves = [t.to(dtype).requires_grad_() for t in (*latents, weight, bias)]
        d = functional.linear_permuted_divergence(
            leaves[:2], leaves[2], bias=leaves[3], divergence=divergence, backend=backend
        )
        results.append((d, *torch.autograd.grad(d.sum(), leaves[:3])))
    for ours, truth in zip(*results, strict=True):
        plain = truth.float()
        check_gradient("permuted_divergence", ours, truth, plain, growth=4 * SIZE, floor=0.1)


@pytest.mark.parametrize("value", [-torch.inf, torch.inf])
def test_checks_name_infinite_logits(value, monkeypatch):
    x = make_rows(4, 4, 3, seed=2)
    x.clean[1, 1] = value
    rows = (x.perturbed, x.clean, torch.arange(4))
    contributions, bias = torch.zeros(2, 4, 3), torch.zeros(3)
    assert functional.row_divergence(*rows).isnan()
    monkeypatch.setenv("MCR_FAST_CHECK", "1")
    with pytest.raises(ValueError, match="clean holds infinite logits.* -1e9"):
        functional.row_divergence(*rows)
    with pytest.raises(ValueError, match="perturbed holds infinite"):
        functional.row_divergence(x.clean, x.perturbed, rows[2])
    bias[0] = value
    with pytest.raises(ValueError, match="bias holds infinite"):
        functional.permuted_divergence(contributions, bias=bias)
    contributions[0, 2, 1] = value
    with pytest.raises(ValueError, match="contributions holds infinite"):
        functional.permuted_divergence(contributions)
