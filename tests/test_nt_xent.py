"""nt_xent: the shared contrastive tests, and the formula of the paper pair by pair."""

import math

import pytest
import torch
import torch.nn.functional as F
from contrastive import ContrastiveTests, make_rows

from mcr_fast.ops.nt_xent import nt_xent
from mcr_fast.reference.nt_xent import nt_xent_reference


def pair_by_pair(x, labels, present, temperature):
    """The mean over ordered pairs of equal label, in Python floats."""
    rows = range(len(x)) if present is None else present.nonzero().flatten().tolist()
    z = F.normalize(x.double(), dim=1)
    s = (z @ z.T / temperature).tolist()
    labels = labels.tolist()
    losses = []
    for a in rows:
        negatives = [n for n in rows if labels[n] != labels[a]]
        for p in rows:
            if p != a and labels[p] == labels[a]:
                ratios = [math.exp(s[a][n] - s[a][p]) for n in negatives]
                losses.append(math.log1p(math.fsum(ratios)))
    return math.fsum(losses) / max(len(losses), 1)


@pytest.mark.parametrize("shape", [(0, 3, 1), (1, 3, 1), (2, 3, 2), (9, 4, 3), (20, 5, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_reference_is_the_formula(shape, masked):
    x, labels, present = make_rows(*shape, torch.float64)
    present = present if masked else None
    expected = pair_by_pair(x, labels, present, 0.5)
    assert nt_xent_reference(x, labels, present, 0.5).item() == pytest.approx(expected, rel=1e-12)
    x.requires_grad_()
    torch.autograd.gradcheck(lambda t: nt_xent_reference(t, labels, present, 0.5), x)


class TestNtXent(ContrastiveTests):
    name = "nt_xent"
    op = staticmethod(nt_xent)
    reference = staticmethod(nt_xent_reference)

    def test_one_class_has_no_negatives(self):
        x, labels, _ = make_rows(300, 8, 1)
        loss, grad = self.run(x, labels)
        assert loss == 0
        assert not grad.any()

    def test_well_separated_classes_keep_their_digits(self):
        """A tiny loss is log1p of a tiny ratio, not the difference of two logs."""
        labels = torch.arange(40) % 4
        x = F.one_hot(labels, 4).float() + 1e-3 * torch.randn(40, 4)
        loss, _ = self.run(x, labels, None, 0.05)
        truth, _ = self.run(x.double(), labels, None, 0.05, "reference")
        assert 0 < truth < 1e-6
        assert loss.item() == pytest.approx(truth.item(), rel=1e-4)
