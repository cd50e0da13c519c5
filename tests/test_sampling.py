"""Permutations of both schemes: what they must be, how often each donor comes, reproducibility."""

import math

import pytest
import torch
from inputs import generator

from mcr_fast import CyclicPermutations, sample_permutations
from mcr_fast.sampling import SCHEMES


def is_permutation(table):
    rows = torch.arange(table.shape[-1])
    return bool((table.sort(-1).values == rows).all())


@pytest.mark.parametrize("batch_size", [2, 3, 7, 31, 64])
def test_cyclic_is_true_permutations_without_fixed_points_or_repeats(batch_size):
    for count in {1, batch_size // 2, batch_size - 1}:
        sample = sample_permutations(max(count, 1), batch_size, generator=generator(1))
        table = sample.index()
        assert isinstance(sample, CyclicPermutations)
        assert table.dtype == torch.int64
        assert table.shape == (max(count, 1), batch_size)
        assert sample.num_permutations == max(count, 1)
        assert is_permutation(table)
        assert not (table == torch.arange(batch_size)).any()
        for i in range(batch_size):
            assert table[:, i].unique().numel() == table.shape[0]


def test_cyclic_is_the_order_shifted():
    sample = sample_permutations(3, 8, generator=generator(2))
    table = sample.index()
    for k, shift in enumerate(sample.shifts.tolist()):
        for a in range(8):
            assert table[k, sample.order[a]] == sample.order[(a + shift) % 8]


def test_shifts_are_consecutive_from_any_one_on():
    n, count, firsts = 7, 3, set()
    for seed in range(60):
        shifts = sample_permutations(count, n, generator=generator(seed)).shifts
        assert ((shifts - shifts[0]) % (n - 1)).tolist() == list(range(count))
        firsts.add(int(shifts[0]))
    assert firsts == set(range(1, n))


def test_variance_of_a_mean_is_that_of_scattered_shifts():
    # of 1 / (K N) sum f(i, pi_k(i)) for any f: what the docstring promises
    n, count, draws, g = 12, 5, 4000, generator(6)
    f = torch.randn(n, n, generator=g, dtype=torch.float64)
    f += torch.randn(n, 1, generator=g, dtype=torch.float64)  # rows and donors with an effect
    f += torch.randn(n, generator=g, dtype=torch.float64)
    rows = torch.arange(n).expand(count, n)
    means = torch.empty(2, draws, dtype=torch.float64)
    for draw in range(draws):
        sample = sample_permutations(count, n, generator=g)
        scattered = CyclicPermutations(sample.order, torch.randperm(n - 1, generator=g)[:count] + 1)
        for scheme, donors in enumerate((sample.index(), scattered.index())):
            means[scheme, draw] = f[rows, donors].mean()
    assert (means.mean(1) - f[~torch.eye(n, dtype=torch.bool)].mean()).abs().max() < 0.01
    ratio = means.var(1)[0] / means.var(1)[1]
    assert abs(ratio - 1) < 5 * math.sqrt(4 / draws)


def test_all_shifts_are_every_ordered_pair():
    table = sample_permutations(8, 9, generator=generator(3)).index()
    assert torch.equal(
        table.sort(0).values,
        torch.stack([torch.tensor([j for j in range(9) if j != i]) for i in range(9)], 1),
    )


@pytest.mark.parametrize(
    ("count", "batch_size", "num_modalities"), [(2, 5, 3), (4, 5, 4), (3, 9, 2)]
)
def test_own_donors_differ_in_every_permutation(count, batch_size, num_modalities):
    for seed in range(20):
        sample = sample_permutations(
            count, batch_size, num_modalities=num_modalities, generator=generator(seed)
        )
        table = sample.index()
        assert table.shape == (num_modalities, count, batch_size)
        assert is_permutation(table)
        assert not (table == torch.arange(batch_size)).any()
        assert ((sample.shifts >= 1) & (sample.shifts < batch_size)).all()
        for k in range(count):
            assert sample.shifts[:, k].unique().numel() == num_modalities
        for m in range(num_modalities):
            assert sample.shifts[m].unique().numel() == count


@pytest.mark.parametrize("num_modalities", [None, 2])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_donor_is_equally_likely(scheme, num_modalities):
    n, count, draws, g = 5, 2, 3000, generator(4)
    seen = torch.zeros(n, n)
    for _ in range(draws):
        sample = sample_permutations(
            count, n, scheme=scheme, num_modalities=num_modalities, generator=g
        )
        table = sample.index() if isinstance(sample, CyclicPermutations) else sample
        for row in table.reshape(-1, n):
            seen[torch.arange(n), row] += 1
    total = draws * count * (num_modalities or 1)
    candidates = n if scheme == "uniform" else n - 1
    expected = torch.full((n, n), total / candidates)
    if scheme == "cyclic":
        expected.fill_diagonal_(0)
    # 5 standard deviations of a count, as if the rows of one sample were independent
    assert (seen - expected).abs().max() < 5 * math.sqrt(total / candidates)


def test_uniform_tables():
    table = sample_permutations(50, 6, scheme="uniform", generator=generator(5))
    assert table.dtype == torch.int64
    assert table.shape == (50, 6)
    assert is_permutation(table)
    assert (table == torch.arange(6)).any(), "fixed points are allowed"
    own = sample_permutations(50, 6, scheme="uniform", num_modalities=3, generator=generator(5))
    assert own.shape == (3, 50, 6)
    assert is_permutation(own)
    assert not torch.equal(own[0], own[1])


@pytest.mark.parametrize("num_modalities", [None, 3])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_generator_decides(scheme, num_modalities):
    def draw(seed):
        sample = sample_permutations(
            3, 8, scheme=scheme, num_modalities=num_modalities, generator=generator(seed)
        )
        return sample.index() if isinstance(sample, CyclicPermutations) else sample

    state = torch.get_rng_state()
    assert torch.equal(draw(1), draw(1))
    assert not torch.equal(draw(1), draw(2))
    assert torch.equal(torch.get_rng_state(), state), "the default generator is not touched"


def test_default_generator():
    torch.manual_seed(3)
    first = sample_permutations(3, 8).index()
    assert not torch.equal(first, sample_permutations(3, 8).index())
    torch.manual_seed(3)
    assert torch.equal(first, sample_permutations(3, 8).index())


@pytest.mark.parametrize("batch_size", [0, 1])
@pytest.mark.parametrize("num_modalities", [None, 2])
def test_batches_without_a_pair(batch_size, num_modalities):
    own = () if num_modalities is None else (num_modalities,)
    sample = sample_permutations(4, batch_size, num_modalities=num_modalities)
    assert sample.num_permutations == 0
    assert sample.index().shape == (*own, 0, batch_size)
    table = sample_permutations(4, batch_size, scheme="uniform", num_modalities=num_modalities)
    assert table.shape == (*own, 4, batch_size)


def test_device():
    sample = sample_permutations(2, 4, device="cpu").to("meta")
    assert sample.order.device.type == sample.shifts.device.type == "meta"
    moved = sample_permutations(2, 4, generator=generator(1), device="meta")
    assert moved.order.device.type == "meta"
    assert sample_permutations(2, 4, scheme="uniform", device="meta").device.type == "meta"


def test_samples_are_frozen():
    sample = sample_permutations(2, 4)
    with pytest.raises(AttributeError):
        sample.order = torch.arange(4)
