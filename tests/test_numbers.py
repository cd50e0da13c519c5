"""Options that are numbers: of whatever library makes them, stored as Python's, bools refused."""

import copy
from decimal import Decimal
from enum import IntEnum
from fractions import Fraction

import pytest
import torch

import mcr_fast
from mcr_fast import _checks as checks
from mcr_fast import functional as F

np = pytest.importorskip("numpy")


class Width(IntEnum):
    FOUR = 4


FOURS = [
    4,
    np.int64(4),
    np.int8(4),
    np.uint32(4),
    np.array(4),
    torch.tensor(4),
    torch.tensor(4, dtype=torch.uint8),
    Width.FOUR,
    np.array([1, 3]).max() + 1,
]
HALVES = [
    0.5,
    np.float32(0.5),
    np.float64(0.5),
    np.float16(0.5),
    np.array(0.5),
    torch.tensor(0.5),
    torch.tensor(0.5, dtype=torch.bfloat16),
    Fraction(1, 2),
    Decimal("0.5"),
]
NOT_WHOLE = [4.0, np.float64(4), "4", None, [4], np.array([4]), torch.tensor([4]), 4j]
NOT_A_NUMBER = ["0.5", None, [0.5], np.array([0.5]), torch.tensor([0.5]), 0.5j, np.complex64(0.5)]
BOOLS = [True, np.True_, np.array(True), torch.tensor(True)]


@pytest.mark.parametrize("four", FOURS, ids=lambda x: type(x).__name__)
def test_whole_numbers_become_int(four):
    assert type(checks.whole("count", four)) is int
    assert checks.whole("count", four) == 4
    mcr = mcr_fast.MCRLoss([four] * 2, four, num_permutations=four, chunk_rows=four, ceb_weight=1)
    assert mcr.latent_dims == (4, 4)
    assert [type(d) for d in mcr.latent_dims] == [int, int]
    for name in ("num_classes", "num_permutations", "chunk_rows"):
        assert type(getattr(mcr, name)) is int
    z = [torch.randn(9, 4) for _ in range(2)]
    out = mcr(z, torch.arange(9) % 4, fusion=torch.nn.Linear(8, 4))
    assert out.logits.shape == (9, 4)
    assert mcr_fast.sample_permutations(four, four + 5).index().shape == (4, 9)
    assert mcr_fast.sample_permutations(1, 9, num_modalities=four).index().shape == (4, 1, 9)


@pytest.mark.parametrize("half", HALVES, ids=lambda x: type(x).__name__)
def test_numbers_become_float(half):
    for check in (checks.positive, checks.finite):
        assert type(check("weight", half)) is float
        assert check("weight", half) == 0.5
    mcr = mcr_fast.MCRLoss(
        [4, 4], 3, mipd_weight=half, contrastive_weight=half, ceb_weight=half, temperature=half
    )
    for name in ("mipd_weight", "contrastive_weight", "ceb_weight", "temperature"):
        assert type(getattr(mcr, name)) is float
    assert "mipd_weight=0.5" in repr(copy.deepcopy(mcr))
    z = [torch.randn(4, 3) for _ in range(2)]
    for loss in (F.nt_xent, F.sup_con):
        assert torch.equal(loss(z, temperature=half), loss(z, temperature=0.5))
    assert type(mcr_fast.NTXentLoss(half).temperature) is float


@pytest.mark.parametrize("value", NOT_WHOLE + BOOLS, ids=repr)
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(TypeError, match="count must be int, got"):
        checks.whole("count", value)
    with pytest.raises(TypeError, match="num_permutations must be an int, got"):
        mcr_fast.sample_permutations(value, 9)


@pytest.mark.parametrize("value", NOT_A_NUMBER + BOOLS, ids=repr)
def test_what_is_no_number_is_refused(value):
    for check in (checks.positive, checks.finite):
        with pytest.raises(TypeError, match="weight must be a number, got"):
            check("weight", value)


@pytest.mark.parametrize("value", [np.float32("nan"), torch.tensor(float("inf")), Decimal("inf")])
def test_what_is_not_finite_is_refused(value):
    for check in (checks.positive, checks.finite):
        with pytest.raises(ValueError, match="weight must be finite"):
            check("weight", value)


def test_ranges():
    with pytest.raises(ValueError, match="temperature must be finite and above 0, got"):
        F.nt_xent(torch.eye(2), torch.arange(2), temperature=np.float32(0))
    with pytest.raises(ValueError, match="num_permutations must be at least 1, got 0"):
        mcr_fast.sample_permutations(np.int64(0), 4)


def test_a_learnable_number_is_refused_and_not_frozen_unseen():
    learnable = torch.nn.Parameter(torch.tensor(0.5))
    with pytest.raises(TypeError, match="temperature must be a number, got a tensor that requires"):
        F.nt_xent(torch.eye(2), torch.arange(2), temperature=learnable)


def test_a_number_elsewhere_is_not_waited_for():
    with pytest.raises(TypeError, match=r"temperature must be a number, got a tensor on meta"):
        F.nt_xent(torch.eye(2), torch.arange(2), temperature=torch.tensor(0.5, device="meta"))


@pytest.mark.parametrize(
    "widths",
    [(4, 5), [4, 5], torch.Size([4, 5]), range(4, 6), np.array([4, 5]), torch.tensor([4, 5])],
    ids=lambda x: type(x).__name__,
)
def test_latent_dims_of_any_ordered_collection(widths):
    dims = checks.latent_dims(widths)
    assert dims == (4, 5)
    assert [type(d) for d in dims] == [int, int]
    linear = torch.nn.Linear(9, 3)
    fusion = mcr_fast.AdditiveFusion.from_linear(linear, widths)
    assert fusion([torch.zeros(2, 4), torch.zeros(2, 5)]).shape == (2, 3)


@pytest.mark.parametrize(
    "widths",
    ["44", b"44", {4: 1, 5: 2}, {4, 5}, 4, None, np.array(4), np.eye(2), iter([4, 5])],
    ids=repr,
)
def test_latent_dims_of_no_ordered_collection(widths):
    with pytest.raises(TypeError, match="latent_dims must be a list of widths"):
        checks.latent_dims(widths)


def test_a_weight_set_later_may_be_of_numpy():
    z = [torch.randn(6, 4, requires_grad=True) for _ in range(2)]
    fusion, labels = torch.nn.Linear(8, 3), torch.arange(6) // 2
    set_later = mcr_fast.MCRLoss([4, 4], 3, num_permutations="all", mipd_weight=0.0)
    weights = {"mipd_weight": 0.25, "contrastive_weight": 0.5}
    given = mcr_fast.MCRLoss([4, 4], 3, num_permutations="all", **weights)
    set_later.mipd_weight = np.float32(0.25)
    set_later.contrastive_weight = np.float64(0.5)
    values = [mcr(z, labels, fusion=fusion).loss for mcr in (set_later, given)]
    assert torch.equal(*values)
    assert values[0].dtype == torch.float32


def test_an_option_is_compared_whatever_its_type():
    for value in (np.array(["greedy", "greedy"]), 3, torch.zeros(2)):
        with pytest.raises(ValueError, match="strategy must be one of"):
            mcr_fast.MCRLoss([4, 4], 3, strategy=value)
    assert mcr_fast.MCRLoss([4, 4], 3, strategy=np.str_("greedy")).strategy == "greedy"
