"""The synthetic data of examples/competition: what a setting changes, and what it leaves."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from examples.competition.data import FAMILIES, hidden, synergy


def load(family: str, value: float, seed: int = 0):
    return FAMILIES[family].load(value, seed)


@pytest.mark.parametrize("family", ["speed", "figure1", "hidden", "synergy"])
def test_test_rows_are_many(family):
    """So that their noise is little beside the spread over seeds: at most half a point."""
    data = load(family, FAMILIES[family].values[0])
    assert len(data.test) == 10_000
    assert len(data.train) == 512
    assert len(data.validation) == 1_000


def test_hidden_columns_are_standardized_at_every_s():
    for scale in FAMILIES["hidden"].values:
        data = load("hidden", scale)
        for x in data.train.inputs:
            torch.testing.assert_close(x.mean(0), torch.zeros(x.shape[1]), rtol=0, atol=1e-5)
            torch.testing.assert_close(x.std(0), torch.ones(x.shape[1]), rtol=0, atol=1e-5)
        for x in data.test.inputs:  # by the training rows, not by their own
            assert 0 < (x.std(0) - 1).abs().max() < 0.25


def test_hidden_evidence_is_the_same_at_every_s():
    """A linear map takes the columns at one s to those at another, exactly; the rest is equal."""
    plain = load("hidden", 1.0)
    for scale in (0.1, 0.05):
        small = load("hidden", scale)
        for split in ("train", "test"):
            one, other = getattr(plain, split), getattr(small, split)
            assert torch.equal(one.labels, other.labels)
            torch.testing.assert_close(one.inputs[1], other.inputs[1])
        x, y = (d.train.inputs[0].double() for d in (small, plain))
        constant = torch.ones(len(x), 1, dtype=x.dtype)
        mapping = torch.linalg.lstsq(torch.cat([x, constant], 1), y).solution
        x, y = (d.test.inputs[0].double() for d in (small, plain))
        found = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1) @ mapping
        torch.testing.assert_close(found, y, rtol=0, atol=1e-3)


def test_hidden_evidence_has_little_variance():
    """The smaller s is, the less of the columns' variance is left to as many directions."""
    shares = []
    for scale in FAMILIES["hidden"].values:
        x = load("hidden", scale).train.inputs[0]
        variances = torch.linalg.svdvals(x - x.mean(0)).square()
        loud = hidden.NUISANCE
        shares.append((variances[loud:].sum() / variances.sum()).item())
    assert shares[0] > 0.5
    assert shares[1] < 0.1
    assert shares[2] < 0.03


def views(rows):
    """Each view, and both side by side."""
    x = [v.numpy() for v in rows.inputs]
    return [*x, np.concatenate(x, axis=1)]


def test_synergy_is_told_by_both_views_together_only():
    """Linear models of each view and of both: their ensembles are far below the one of both."""
    data = load("synergy", 1.0)
    labels, truth = data.train.labels.numpy(), data.test.labels.numpy()
    own = []
    for train, test in zip(views(data.train), views(data.test), strict=True):
        model = LogisticRegression(max_iter=2000).fit(train, labels)
        own.append(model.predict_proba(test))
    first, second, both = own
    right = [np.mean(p.argmax(1) == truth) for p in (first, second, first + second, first * second)]
    assert np.mean(both.argmax(1) == truth) > max(right) + 0.1
    assert min(right[:2]) > 0.35  # some evidence in each


def test_no_ensemble_knows_a_sum_of_two_attributes():
    """Posteriors by each attribute: their mean and product leave all sums open that both leave."""
    values = synergy.VALUES
    posterior = np.zeros((values, synergy.CLASSES))
    for a in range(values):
        posterior[a, a : a + values] = 1 / values
    for a in range(values):
        for b in range(values):
            for joined in (posterior[a] + posterior[b], posterior[a] * posterior[b]):
                best = np.flatnonzero(joined == joined.max())
                assert a + b in best
                assert len(best) == values - abs(a - b)


def test_only_the_first_view_of_synergy_is_scaled():
    plain, scaled = load("synergy", 1.0), load("synergy", 0.05)
    assert torch.equal(plain.test.labels, scaled.test.labels)
    torch.testing.assert_close(scaled.test.inputs[0], 0.05 * plain.test.inputs[0])
    assert torch.equal(scaled.test.inputs[1], plain.test.inputs[1])
