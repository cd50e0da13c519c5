"""What a case's numbers are put through: functions that raise AssertionError.

Most cases go through `bound` alone; all others are named by the cases they are for. What does not
depend on the numbers is in behaviour.py.
"""

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import replace

import masks
import pytest
import torch
from divergences import Rows, assert_same_bits, with_dirty_memory
from tolerances import TABLE, eps

from mcr_fast._names import OF_SOFTMAX
from suite import processes
from suite.backends import Backend
from suite.subjects import Divergence, Subject, worth_nothing

Check = Callable[[Subject, Backend], None]


def name_of(check: Check) -> str:
    """As ids have it."""
    return (check.func if isinstance(check, functools.partial) else check).__name__


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that torch hands out holds NaN, or the largest integer."""
    utils = torch.utils.deterministic
    before = utils.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that have no deterministic form
        torch.use_deterministic_algorithms(True, warn_only=True)
        utils.fill_uninitialized_memory = True
        try:
            yield
        finally:
            utils.fill_uninitialized_memory = before
            torch.use_deterministic_algorithms(False)


@contextlib.contextmanager
def rounding_of(subject: Subject) -> Iterator[None]:
    """Triton's interpreter cuts bfloat16 off where a GPU rounds it: one more stored rounding."""
    before = TABLE[subject.op]
    narrow = any(t.dtype == torch.bfloat16 for t in subject.tensors())
    if processes.current() == "interpreted" and narrow and before.stored == 0:
        TABLE[subject.op] = replace(before, stored=1)
    try:
        yield
    finally:
        TABLE[subject.op] = before


def leaves_of(subject: Subject, wanted: tuple[int, ...] | None = None) -> tuple[Subject, list]:
    """The subject with leaves in place of its first tensors, and those that want a gradient."""
    tensors = subject.tensors()
    chosen = range(subject.differentiable) if wanted is None else wanted
    for k in range(subject.differentiable):
        tensors[k] = tensors[k].detach().clone().requires_grad_(k in chosen)
    return subject.with_tensors(tensors), [tensors[k] for k in chosen]


def bound(subject: Subject, on: Backend) -> None:
    """Within the bound of the float64 truth, in memory that held NaN before."""
    with poisoned_memory(), rounding_of(subject):
        subject.check(on.argument)


def adds_up(subject: Divergence, on: Backend) -> None:
    """Gradients of the subsets one by one sum up to those of all at once."""
    ones = torch.eye(len(subject.upstream()))
    parts = [subject.run(on.argument, row)[1:] for row in ones]
    total = subject.run(on.argument, ones.sum(0))[1:]
    for whole, *terms in zip(total, *parts, strict=True):
        torch.testing.assert_close(sum(terms), whole, rtol=1e-5, atol=1e-7)


def looks_unequal(subject: Divergence, on: Backend) -> None:
    """Equal numbers in memory give the bits of one number for all, and so do means and signs."""
    count = len(subject.upstream())
    expected = subject.run(on.argument, torch.tensor(0.3))
    again = functools.partial(subject.run, on.argument, torch.full((count,), 0.3))
    # what a second pass would leave is rounded elsewhere
    for ours in (again(), *with_dirty_memory(again)):
        assert_same_bits(ours, expected)
    for reduce, factor in ((torch.mean, 1 / count), (lambda d: (-d).sum(), -1.0)):
        chosen, leaves = leaves_of(subject)
        grads = torch.autograd.grad(reduce(chosen.call(on.argument)), leaves)
        assert_same_bits(grads, subject.run(on.argument, torch.tensor(factor))[1:])


def not_finite(subject: Subject, on: Backend) -> None:
    """NaN or infinity in gives no finite value, and no finite gradient where it went in."""

    for bad in (torch.nan, torch.inf, -torch.inf):
        for y, places in subject.edges(bad):
            # NaN where the reference has it; the square of infinity is infinite
            nan = bool(y.call("reference").isnan().all())
            lost = torch.isnan if nan else lambda t: ~t.isfinite()
            results = y.run(on.argument, torch.ones_like(y.upstream()))
            assert lost(results[0]).all(), f"{results[0]} of {bad}"
            for which, where in places:
                assert lost(results[which][where]).any(), f"result {which} of {bad} at {where}"
        assert lost(y.call(on.argument)).all()


def all_nan(subject: Subject, on: Backend) -> None:
    """Logits that are infinite on both sides of a pair are no agreement."""
    assert subject.call(on.argument).isnan().all()
    assert subject.run(on.argument, torch.ones_like(subject.upstream()))[0].isnan().all()


def stays_in(subject: Divergence, on: Backend, row: int) -> None:
    """Rows that are their own donors learn nothing, but for one that holds NaN."""
    value, grad, *_ = subject.run(on.argument, torch.ones_like(subject.upstream()))
    assert value.isnan().all()
    assert grad[:, row].isnan().any()
    others = [i for i in range(grad.shape[1]) if i != row]
    assert grad[:, others].abs().max() < 1e-12


def anything_in(subject: Divergence, on: Backend, rows: dict[str, list]) -> None:
    """Where `rows` of a tensor count for nothing they may hold anything, and get no gradient."""
    names = [name for name in ("contributions", "perturbed", "clean") if name in rows]
    where = {name: (..., rows[name], slice(None)) for name in names}
    results = []
    for bad in (0.0, torch.nan, torch.inf):
        y = subject.map(torch.clone)
        for name in names:
            getattr(y.inputs, name)[where[name]] = bad
        results.append(y.run(on.argument, torch.ones_like(y.upstream())))
        order = {"contributions": 1, "perturbed": 1, "clean": 2}
        for name in names:
            assert not results[-1][order[name]][where[name]].any(), f"a gradient of {bad}"
    for got in results[1:]:
        if subject.op == "row_divergence" and on.name == "cpu":
            assert_same_bits(got, results[0])  # dropped rows are not gone through at all
            continue
        for ours, wanted in zip(got, results[0], strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-5, atol=1e-7)


def zero(subject: Subject, on: Backend) -> None:
    """Exactly 0, and so are the gradients."""
    results = subject.run(on.argument, torch.ones_like(subject.upstream()))
    assert worth_nothing(subject, results), results


def next_to_zero(subject: Subject, on: Backend, value: float = 1e-12, grad: float = 1e-6) -> None:
    """Nothing but rounding is left of the value, on the right side of zero."""
    result, *grads = subject.run(on.argument, torch.ones_like(subject.upstream()))
    assert (result >= 0).all()
    assert (result < value).all(), result
    assert all(g.abs().max() < grad for g in grads)


def gives(subject: Subject, on: Backend, values: list[float]) -> None:
    """The values are known, the gradients finite."""
    result, *grads = subject.run(on.argument, torch.ones_like(subject.upstream()))
    wanted = torch.tensor(values, device=result.device).reshape(result.shape)
    atol = 1e-30 if on.name == "cpu" else 1e-12
    torch.testing.assert_close(result, wanted, rtol=1e-6, atol=atol)
    assert all(g.isfinite().all() for g in grads)


def keeps_digits(subject: Divergence, on: Backend, delta: float) -> None:
    """The log ratio comes from the difference of the logits; plain torch loses all of it."""
    upstream = torch.ones_like(subject.upstream())
    ours = subject.run(on.argument, upstream)
    truth = subject.map(lambda t: t.double() if t.is_floating_point() else t)
    truth = truth.run("reference", upstream)
    for a, b, k in zip(ours, truth, (2, 8, 8)[: len(ours)], strict=True):
        error, allowed = (a - b).norm() / b.norm(), k * eps(torch.float32) / delta
        assert error <= allowed, f"{error} > {allowed}"


def close(subject: Divergence, on: Backend) -> None:
    """To the digits of float32, however large the numbers."""
    upstream = torch.ones_like(subject.upstream())
    value, *grads = subject.run(on.argument, upstream)
    wide = subject.map(lambda t: t.double() if t.is_floating_point() else t)
    truth, *expected = wide.run("reference", upstream)
    torch.testing.assert_close(value.double(), truth, rtol=1e-6, atol=0)
    for actual, grad in zip(grads, expected, strict=True):
        torch.testing.assert_close(actual.double(), grad, rtol=2e-6, atol=1e-6)


def masked(subject: Divergence, on: Backend, size: float = masks.SIZE) -> None:
    """To the digits that the logits have without their masks, or without a common offset."""

    def ours(x, upstream, **options):
        return replace(subject, inputs=x, options=options).run(on.argument, upstream)

    with rounding_of(subject):
        masks.check(subject.inputs, ours, subject.upstream(), size, **subject.options)


def no_class(subject: Divergence, on: Backend) -> None:
    """A class that has no share of any row is no class: the same without it."""
    upstream = torch.ones_like(subject.upstream())
    value, *grads = subject.run(on.argument, upstream)
    wider = subject.map(torch.clone)
    a, bias = wider.inputs.contributions, wider.inputs.bias
    wider.inputs.contributions = torch.cat([torch.zeros_like(a[..., :1]), a], 2)
    wider.inputs.bias = torch.cat([torch.full_like(bias[:1], -1e9), bias])
    got = wider.run(on.argument, upstream)
    torch.testing.assert_close(got[0], value, rtol=1e-5, atol=0)
    for ours, wanted in zip(got[1:], grads, strict=True):
        torch.testing.assert_close(ours[..., 1:], wanted, rtol=1e-4, atol=1e-7)
        assert not ours[..., 0].any()


def common_class(subject: Divergence, on: Backend) -> None:
    """A class in which the rows agree adds nothing, whatever it holds."""
    upstream = torch.ones_like(subject.upstream())
    value, *grads = subject.run(on.argument, upstream)
    classes = subject.inputs.clean.shape[1]
    # of a mean over the classes
    share = 1.0 if subject.options["divergence"] in OF_SOFTMAX else classes / (classes + 1)
    for mask in masks.MASKS:
        wider = subject.map(torch.clone)
        for name in ("perturbed", "clean"):
            t = getattr(wider.inputs, name)
            setattr(wider.inputs, name, torch.cat([t, torch.full_like(t[:, :1], mask)], 1))
        got = wider.run(on.argument, upstream)
        torch.testing.assert_close(got[0], share * value, rtol=2e-6, atol=0)
        for ours, wanted in zip(got[1:], grads, strict=True):
            assert (ours[:, -1] == 0).all()
            torch.testing.assert_close(ours[:, :-1], share * wanted, rtol=1e-5, atol=1e-8)


def nan_or_raises(subject: Divergence, on: Backend, match: str) -> None:
    """Rows that are none: the CPU names them; a kernel, which cannot, gives NaN."""
    if on.argument == "cpu" and on.process is None:
        with pytest.raises(RuntimeError, match=match):
            subject.call(on.argument)
        return
    assert subject.call(on.argument).isnan().all()
    for upstream in (subject.upstream(), torch.ones_like(subject.upstream())):
        value, first, *others = subject.run(on.argument, upstream)
        assert value.isnan().all()
        if subject.op == "permuted_divergence":
            assert all(g.isnan().all() for g in (first, *others))
        else:
            clean = len(subject.inputs.clean)
            wrong = (subject.inputs.rows < 0) | (subject.inputs.rows >= clean)
            assert first[wrong].isnan().all()


def dtypes_of_inputs(subject: Subject, on: Backend) -> None:
    """Each gradient has its input's dtype, and the numbers are those of float32, rounded once."""
    upstream = torch.ones_like(subject.upstream())
    value, *grads = subject.run(on.argument, upstream)
    given = [t.dtype for t in subject.tensors()[: subject.differentiable]]
    assert [g.dtype for g in grads] == given
    wide = torch.float64 if torch.float64 in given else torch.float32
    assert value.dtype == wide
    as_wide = subject.map(lambda t: t.to(wide) if t.is_floating_point() else t)
    expected = as_wide.run(on.argument, upstream)
    for ours, wanted in zip((value, *grads), expected, strict=True):
        if on.name == "triton" or on.device == "cuda":  # the interpreter cuts off
            torch.testing.assert_close(ours.to(wide), wanted, rtol=1e-2, atol=1e-6)
        else:
            assert torch.equal(ours, wanted.to(ours.dtype))


def order_of_rows(subject: Divergence, on: Backend) -> None:
    """It does not matter, but for the order of sums."""
    x, upstream = subject.inputs, torch.ones_like(subject.upstream())
    order = torch.randperm(len(x.rows))
    shuffled = Rows(x.perturbed[order], x.clean, x.rows[order], x.row_weight[order])
    value, grad, grad_clean = subject.run(on.argument, upstream)
    got = replace(subject, inputs=shuffled).run(on.argument, upstream)
    for ours, wanted in zip(got, (value, grad[order], grad_clean), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-11, atol=1e-15)


def rows_without_any(subject: Divergence, on: Backend) -> None:
    """Clean rows without a perturbed one have no gradient, all others have."""
    x = subject.inputs
    grad = subject.run(on.argument, torch.ones_like(subject.upstream()))[2].any(1)
    has = torch.zeros(len(x.clean), dtype=torch.bool, device=grad.device)
    has[x.rows] = True
    assert torch.equal(grad, has)


def tiny_weights(subject: Divergence, on: Backend) -> None:
    """A weight that underflows drops its row: gradient 0, and not what the memory held."""
    small = subject.inputs.row_weight < 1e-40
    run = functools.partial(subject.run, on.argument, torch.ones_like(subject.upstream()))
    for _, grad, _ in with_dirty_memory(run):
        assert grad[small].abs().max() < 1e-44
        assert grad[~small].any(1).all()
