"""Bias and variance of a draw of donors: every draw there is, against the formulas.

The library draws from a source that deals out one possible outcome after another, so a mean over
them is an expectation, in float64, of what it computes.
"""

import itertools
import math

import pytest
import torch
from divergences import on_threads
from inputs import generator
from programs import ROOT

from mcr_fast import functional
from mcr_fast.sampling import CyclicPermutations, draw_permutations

pytest.importorskip("tabulate")

from bench import machine, results, table
from bench.__main__ import main
from bench.estimator import figure, report, theory

CLASSES = 3


class Dealt:
    """A source of random numbers whose outcomes are these, in the order they are asked for."""

    device = torch.device("cpu")

    def __init__(self, *outcomes):
        self.outcomes = list(outcomes)

    def keys(self, *shape):  # sorting them gives the permutation that is dealt
        return torch.tensor(self.outcomes.pop(0)).argsort(-1).reshape(shape)

    def permutation(self, count):
        return torch.tensor(self.outcomes.pop(0)).reshape(count)

    def below(self, bound):
        assert self.outcomes[0] < bound
        return torch.tensor([self.outcomes.pop(0)])


def orders(count):
    return list(itertools.permutations(range(count)))


def contributions(num_modalities, num_rows, seed=0):
    shape = (num_modalities, num_rows, CLASSES)
    return 2 * torch.randn(shape, generator=generator(seed), dtype=torch.float64)


def value_and_gradient(x, sample, **options):
    x = x.clone().requires_grad_()
    divergences = functional.permuted_divergence(x, sample, **options)
    (gradient,) = torch.autograd.grad(-divergences.sum(), x)
    return divergences.detach(), gradient


def outcomes(x, draws, **options):
    """(values [draws, S], mean gradient) of every draw."""
    found = [value_and_gradient(x, draw, **options) for draw in draws]
    values, gradients = zip(*found, strict=True)
    return torch.stack(values), torch.stack(gradients).mean(0)


def cyclic_draws(count, n):
    for order, first in itertools.product(orders(n), range(n - 1)):
        yield draw_permutations(Dealt(order, first), count, n, "cyclic", None)


def uniform_draws(n):
    for order in orders(n):
        yield draw_permutations(Dealt([order]), 1, n, "uniform", None)


def assert_near(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_cyclic_expectation_is_all_pairs(count):
    x = contributions(2, 5)
    values, gradient = outcomes(x, cyclic_draws(count, 5))
    exact, exact_gradient = value_and_gradient(x, None)
    assert_near(values.mean(0), exact)
    assert_near(gradient, exact_gradient)
    assert (values - exact).abs().max() > 0.01, "the draw matters"


def test_cyclic_of_all_shifts_is_all_pairs_in_every_draw():
    x = contributions(2, 4)
    exact, exact_gradient = value_and_gradient(x, None)
    for draw in cyclic_draws(3, 4):
        value, gradient = value_and_gradient(x, draw)
        assert_near(value, exact)
        assert_near(gradient, exact_gradient)


def test_uniform_expectation_is_less_by_one_in_n():
    x = contributions(2, 5)
    values, gradient = outcomes(x, uniform_draws(5))
    exact, exact_gradient = value_and_gradient(x, None)
    assert_near(values.mean(0), (1 - 1 / 5) * exact)
    assert_near(gradient, (1 - 1 / 5) * exact_gradient)


def test_uniform_without_self_pairs_is_unbiased_but_for_the_draw_that_keeps_none():
    x = contributions(2, 4)
    values, gradient = outcomes(x, uniform_draws(4), exclude="self")
    exact, exact_gradient = value_and_gradient(x, None)
    kept = 1 - 1 / math.factorial(4)
    assert_near(values.mean(0), kept * exact)
    assert_near(gradient, kept * exact_gradient)


def matrix_of(x):
    return theory.pair_matrix(x, [(0,), (1,)])


def test_matrix_of_pairs_is_what_the_library_takes_the_mean_of():
    x = contributions(2, 6)
    f = matrix_of(x)
    assert theory.all_pairs(f) == pytest.approx(
        float(functional.permuted_divergence(x).sum()), rel=1e-10
    )
    assert theory.interaction(f).sum(0).abs().max() < 1e-12
    assert theory.interaction(f).sum(1).abs().max() < 1e-12


@pytest.mark.parametrize(("count", "n"), [(1, 4), (2, 4), (3, 4), (1, 5), (2, 5), (3, 5), (2, 6)])
def test_variance_of_cyclic_draws(count, n):
    x = contributions(2, n, seed=n)
    f = matrix_of(x)
    rows = torch.arange(n).expand(count, n)
    totals = torch.stack([f[rows, draw.index()].mean() for draw in cyclic_draws(count, n)])
    assert_near(theory.cyclic_variance(f, count), float(totals.var(correction=0)))


def test_variance_of_the_librarys_own_cyclic_values():
    x = contributions(2, 5, seed=1)
    totals = outcomes(x, cyclic_draws(2, 5))[0].sum(1)
    assert_near(theory.cyclic_variance(matrix_of(x), 2), float(totals.var(correction=0)))


def test_variance_of_uniform_draws():
    x = contributions(2, 5, seed=2)
    f = matrix_of(x)
    totals = outcomes(x, uniform_draws(5))[0].sum(1)
    assert_near(theory.uniform_expectation(f), float(totals.mean()))
    assert_near(theory.uniform_variance(f, 1), float(totals.var(correction=0)))
    pairs = (totals[:, None] + totals) / 2  # two independent permutations
    assert_near(theory.uniform_variance(f, 2), float(pairs.var(correction=0)))


def test_variance_between_batches():
    # Every batch of 4 rows that can be drawn from a population of 3.
    f, n = matrix_of(contributions(2, 3)), 4
    batches = [list(rows) for rows in itertools.product(range(3), repeat=n)]
    values = [theory.all_pairs(f[rows][:, rows]) for rows in batches]
    values = torch.tensor(values, dtype=torch.float64)
    assert_near(theory.batch_variance(f, n), float(values.var(correction=0)))
    assert_near(float(values.mean()), float(f.mean()))


def own_cyclic_draws(n, num_modalities):
    for order in orders(n):
        for first in range(n - 1):  # of 1..N-1, as they start: their own order does not matter
            shifts = [(first + i) % (n - 1) for i in range(n - 1)]
            for starts in itertools.permutations(range(n - 1), num_modalities):
                dealt = [*starts, *(s for s in range(n - 1) if s not in starts)]
                source = Dealt(order, shifts, dealt)
                yield draw_permutations(source, 1, n, "cyclic", num_modalities)


def mean_over_donors(x, subset, distinct):
    """D_S over all rows and all donors of its members; distinct: and none of them the row."""
    n, m = x.shape[1], len(subset)
    clean, total, count = x.sum(0), 0.0, 0
    for i, *donors in itertools.product(range(n), repeat=1 + m):
        if distinct and len({i, *donors}) < 1 + m:
            continue
        moves = (x[a, j] - x[a, i] for a, j in zip(subset, donors, strict=True))
        perturbed = clean[i] + sum(moves)
        total += theory.row_divergences(clean[i], perturbed, "jsd")
        count += 1
    return total / count


SUBSETS = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2)]


def test_own_donors_estimate_the_mean_over_distinct_donors():
    x = contributions(3, 4)
    exact = functional.permuted_divergence(x)
    values = torch.stack(
        [functional.permuted_divergence(x, draw) for draw in own_cyclic_draws(4, 3)]
    )
    wanted = torch.stack([mean_over_donors(x, s, distinct=True) for s in SUBSETS])
    assert_near(values.mean(0), wanted)
    assert_near(values.mean(0)[:3], exact[:3])
    assert (values.mean(0) - exact)[3:].abs().min() > 1e-3, "not that of one donor for all members"


def test_own_uniform_donors_estimate_the_mean_over_all():
    x = contributions(3, 3)
    tables = (
        draw_permutations(Dealt([[a], [b], [c]]), 1, 3, "uniform", 3)
        for a, b, c in itertools.product(orders(3), repeat=3)
    )
    values = torch.stack([functional.permuted_divergence(x, table) for table in tables])
    wanted = torch.stack([mean_over_donors(x, s, distinct=False) for s in SUBSETS])
    assert_near(values.mean(0), wanted)


def test_draws_are_dealt_as_asked():
    draws = list(uniform_draws(3))
    assert sorted(tuple(draw[0].tolist()) for draw in draws) == orders(3)
    sample = next(iter(cyclic_draws(2, 4)))
    assert isinstance(sample, CyclicPermutations)
    assert sample.order.tolist() == [0, 1, 2, 3]
    assert sample.shifts.tolist() == [1, 2]


def test_page_has_what_the_files_say(tmp_path):
    page = ROOT / "docs/estimator.md"
    copy = tmp_path / page.name
    copy.write_text(page.read_text(encoding="utf-8"), encoding="utf-8")
    made = [name for makers in report.TABLES.values() for name in makers]
    assert table.write_tables(copy, tmp_path) == len(made)
    assert copy.read_text(encoding="utf-8") == page.read_text(encoding="utf-8")


class Noted(dict):
    """A row that keeps the names of the columns that are read."""

    names: set[str] = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.names.add(name)
        return super().get(name, default)


@pytest.mark.parametrize("part", report.FILES)
def test_every_column_is_read(part, monkeypatch, tmp_path):
    pytest.importorskip("matplotlib")
    path = report.FOLDER / report.FILES[part]
    monkeypatch.setattr(Noted, "names", set())

    def noting(asked):
        asked = report.FOLDER / asked.name  # the figure goes elsewhere
        rows = results.read(asked)
        return [Noted(row) for row in rows] if asked == path else rows

    monkeypatch.setattr(report, "read", noting)
    monkeypatch.setattr(figure, "read", noting)
    for make in report.TABLES[part].values():
        make(report.FOLDER)
    figure.draw_figure(tmp_path)
    # how it was measured
    told = {*machine.environment(), "load", "batches", "draws", "between"}
    assert {*results.read(path)[0]} - told <= Noted.names


def test_page_quotes_the_measured_cost_of_all_pairs():
    lines, header, _ = report.decision(report.FOLDER)
    few = [i for i, name in enumerate(header) if "linear" in name and "100" not in name]
    linear = [i for i, name in enumerate(header) if "linear" in name]
    found = [float(line[i]) for line in lines for i in linear if int(line[0]) <= 64]
    found += [float(line[i]) for line in lines for i in few if int(line[0]) == 128]
    page = (ROOT / "docs/estimator.md").read_text(encoding="utf-8")
    assert f"takes at most {max(found):.2f} times as long" in page


def test_command_writes_every_draw(tmp_path, capsys):
    with on_threads(1):
        assert main(["estimator", "--quick", "--only", "draws", "--out", str(tmp_path)]) == 0
    rows = results.read(tmp_path / report.FILES["draws"])
    kinds = {(r["M"], r["steps"], r["scheme"], r["donors"], r["K"]) for r in rows}
    assert len(kinds) == len(rows)
    exhaustive = [
        r for r in rows if (r["scheme"], r["donors"], r["K"]) == ("cyclic", "shared", "31")
    ]
    assert exhaustive
    for row in exhaustive:
        assert abs(float(row["bias"])) < 1e-6
        assert float(row["encoders_error"]) < 1e-9
    others = [float(r["encoders_error"]) for r in rows if r["K"] == "1"]
    assert min(others) > 0.01
    assert "Sampling variance of the value" in capsys.readouterr().out


@pytest.mark.slow
def test_command_writes_the_files_columns(tmp_path):
    with on_threads(1):
        assert main(["estimator", "--quick", "--out", str(tmp_path)]) == 0
    for name in report.FILES.values():
        assert [*results.read(tmp_path / name)[0]] == [*results.read(report.FOLDER / name)[0]]
