"""What the references hold beside the values that the ops' tests compare with them."""

import pytest
import torch

from mcr_fast import _names
from mcr_fast.reference._divergence import row_divergences
from mcr_fast.reference.linear_permuted_divergence import linear_permuted_divergence_reference
from mcr_fast.reference.permuted_divergence import permuted_divergence_reference
from mcr_fast.reference.row_divergence import row_divergence_reference

N, C = 5, 3
OPTIONS = {
    "subsets": (1, 2),
    "strategy": "greedy",
    "clean_path": "shared",
    "divergence": "jsd",
    "exclude": "none",
}
KNOWN = {
    "strategy": _names.STRATEGIES,
    "clean_path": _names.CLEAN_PATHS,
    "divergence": _names.DIVERGENCES,
    "exclude": _names.EXCLUDES,
}


@pytest.mark.parametrize("option", KNOWN)
def test_unknown_names_raise_and_list_the_known(option):
    x, nothing = torch.randn(2, N, C), (None,) * 6
    latents, weight = torch.randn(2, N, 4), torch.randn(C, 8)
    known = ", ".join(map(repr, KNOWN[option]))
    for value in ("kl", None):
        options = OPTIONS | {option: value}
        with pytest.raises(ValueError, match=f"{option} must be one of {known}, got {value!r}"):
            permuted_divergence_reference(x, *nothing, **options)
        with pytest.raises(ValueError, match=f"{option} must be one of {known}, got {value!r}"):
            linear_permuted_divergence_reference(list(latents), weight, *nothing, **options)


def test_unknown_divergence_of_rows_raises():
    x = torch.randn(N, C)
    with pytest.raises(ValueError, match="divergence must be one of 'jsd', .*, got 'kl'"):
        row_divergence_reference(x, x, torch.arange(N), None, divergence="kl")


def near_rows(dtype=torch.float32, num_classes=40):
    """Logits a rounding or a few apart: many of their divergences would round to below 0."""
    g = torch.Generator().manual_seed(0)
    clean = torch.randn(2000, num_classes, generator=g, dtype=dtype)
    apart = torch.randn(2000, num_classes, generator=g, dtype=dtype)
    return clean, clean + 8 * torch.finfo(dtype).eps * apart


def without_clamp(clean, perturbed):
    p, q = clean.log_softmax(-1), perturbed.log_softmax(-1)
    m = torch.logaddexp(p, q) - torch.tensor(2.0).log()
    return ((p.exp() * (p - m) + q.exp() * (q - m)) / 2).sum(-1)


@pytest.mark.parametrize("divergence", _names.DIVERGENCES)
def test_no_pair_is_below_zero_and_nan_stays(divergence):
    clean, perturbed = near_rows()
    assert (without_clamp(clean, perturbed) < 0).any(), "rounding must take some there"
    perturbed[7, 3] = float("nan")
    rows = row_divergences(clean, perturbed, divergence)
    assert rows[7].isnan()
    assert (rows[torch.arange(len(rows)) != 7] >= 0).all()


@pytest.mark.parametrize("divergence", _names.DIVERGENCES)
def test_an_infinite_number_gives_nan(divergence):
    clean, perturbed = torch.randn(2, 6, 5)
    for row, value in enumerate((float("inf"), -float("inf"))):
        clean[3 * row, 1] = value
        perturbed[3 * row + 1, 1] = value
        clean[3 * row + 2, 1] = perturbed[3 * row + 2, 1] = value
    assert row_divergences(clean, perturbed, divergence).isnan().all()


def test_what_is_taken_up_to_zero_keeps_its_gradient():
    clean, perturbed = (x.requires_grad_() for x in near_rows())
    ours = row_divergences(clean, perturbed, "jsd")
    plain = without_clamp(clean, perturbed)
    assert torch.equal(ours > 0, plain > 0)
    for a, b in zip(
        torch.autograd.grad(ours.sum(), (clean, perturbed)),
        torch.autograd.grad(plain.sum(), (clean, perturbed)),
        strict=True,
    ):
        assert b.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("divergence", _names.DIVERGENCES)
def test_gradcheck_at_and_near_zero(divergence):
    clean = near_rows(torch.float64, 4)[0][:3].requires_grad_()
    apart = torch.tensor([[0.0], [1e-3], [1.0]], dtype=torch.float64) * torch.arange(4.0)
    perturbed = (clean.detach() + apart).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda z, w: row_divergences(z, w, divergence), (clean, perturbed), atol=1e-6
    )
