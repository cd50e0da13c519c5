"""sup_con: the shared contrastive tests, and the formula anchor by anchor."""

import math

import pytest
import torch
import torch.nn.functional as F
from contrastive import ContrastiveTests, make_rows

from mcr_fast.ops.sup_con import sup_con
from mcr_fast.reference.sup_con import sup_con_reference


def anchor_by_anchor(x, labels, present, temperature):
    """The mean over anchors that have a positive, in Python floats."""
    rows = range(len(x)) if present is None else present.nonzero().flatten().tolist()
    z = F.normalize(x.double(), dim=1)
    s = (z @ z.T / temperature).tolist()
    labels = labels.tolist()
    losses = []
    for a in rows:
        positives = [p for p in rows if p != a and labels[p] == labels[a]]
        if positives:
            log_all = math.log(math.fsum(math.exp(s[a][j]) for j in rows if j != a))
            losses.append(-math.fsum(s[a][p] - log_all for p in positives) / len(positives))
    return math.fsum(losses) / max(len(losses), 1)


@pytest.mark.parametrize("shape", [(0, 3, 1), (1, 3, 1), (2, 3, 2), (9, 4, 3), (20, 5, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_reference_is_the_formula(shape, masked):
    x, labels, present = make_rows(*shape, torch.float64)
    present = present if masked else None
    expected = anchor_by_anchor(x, labels, present, 0.5)
    value = sup_con_reference(x, labels, present, 0.5).item()
    assert value == pytest.approx(expected, rel=1e-12, abs=1e-15)
    x.requires_grad_()
    torch.autograd.gradcheck(lambda t: sup_con_reference(t, labels, present, 0.5), x)


class TestSupCon(ContrastiveTests):
    name = "sup_con"
    op = staticmethod(sup_con)
    reference = staticmethod(sup_con_reference)

    def test_two_rows_of_one_class(self):
        """The only other row has probability 1, whatever the temperature: nothing is left over."""
        for temperature in (0.5, 0.01):
            x, labels, _ = make_rows(2, 9, 1)
            loss, grad = self.run(x, labels, None, temperature)
            assert loss.abs() < 1e-6
            assert grad.norm() < 1e-6 / temperature
