"""The CUDA kernels of the contrastive losses against the reference, on simulated teams of lanes.

Their launcher's part is repeated in torch: sorting, products, stripes. What runs on the GPU alone
is not covered: the special-function unit's exponential, the shuffles, the launches.
"""

import shutil

import pytest
import simulated
import torch
from contrastive import hold_to_bound, make_rows
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from simulated_contrastive import contrastive

from mcr_fast.ops.nt_xent import nt_xent
from mcr_fast.ops.sup_con import sup_con

pytestmark = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")

OPS = {"nt_xent": nt_xent, "sup_con": sup_con}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.fixture(autouse=True, scope="module")
def _compiled():
    simulated.module()


def reference(op, x, labels, present, temperature, upstream=1.0):
    x = x.detach().requires_grad_()
    loss = OPS[op](x, labels, present, temperature=temperature, backend="reference")
    (grad,) = torch.autograd.grad(loss * upstream, x)
    return loss.detach(), grad


def check(op, x, labels, present=None, temperature=0.5, upstream=1.0, **how):
    ours = contrastive(op, x, labels, present, temperature, upstream, **how)
    plain = reference(op, x, labels, present, temperature, upstream)
    truth = reference(op, x.double(), labels, present, temperature, upstream)
    hold_to_bound(op, ours, truth, plain, x, temperature, upstream, (list(x.shape), x.dtype, how))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("lanes", simulated.LANES)
@pytest.mark.parametrize("temperature", [0.5, 0.03, 0.01])
def test_against_the_reference(op, lanes, temperature):
    for shape in ((2, 3, 1), (64, 64, 6), (65, 37, 6), (33, 1, 3), (70, 53, 7), (40, 8, 1)):
        for dtype in DTYPES:
            x, labels, present = make_rows(*shape, dtype)
            check(op, x, labels, None, temperature, lanes=lanes)
            check(op, x, labels, present, temperature, -2.5, lanes=lanes, stripe_rows=24)


@st.composite
def problems(draw):
    """A batch and how it is run."""
    x, labels, present = make_rows(
        draw(st.integers(2, 80)),
        draw(st.integers(1, 70)),
        draw(st.sampled_from([0, 1, 2, 5, 30])),
        torch.float32,
        seed=draw(st.integers(0, 2**16)),
    )
    x = (x * draw(st.sampled_from([1.0, 1e-3, 1e3]))).to(draw(st.sampled_from(DTYPES)))
    return {
        "x": x,
        "labels": labels,
        "present": present if draw(st.booleans()) else None,
        "temperature": draw(st.sampled_from([2.0, 0.5, 0.07, 0.02, 0.01])),
        "lanes": draw(st.sampled_from(simulated.LANES)),
        "stripe_rows": draw(st.sampled_from([1, 16, 1 << 30])),
    }


@pytest.mark.parametrize("op", OPS)
@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(problem=problems())
def test_any_problem(op, problem):
    check(op, **problem)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("lanes", simulated.LANES)
def test_more_columns_than_one_run(op, lanes):
    """Sums are rounded anew every 8192 columns."""
    x, labels, _ = make_rows(9000, 4, 3000)
    ours = contrastive(op, x, labels, lanes=lanes, stripe_rows=1000)
    truth = OPS[op](x.double(), labels, None, temperature=0.5, backend="cpu")
    assert abs(ours[0] - truth) <= 2e-6 * truth


@pytest.mark.parametrize("op", OPS)
def test_the_cpu_computes_the_same(op):
    """One row algorithm: what differs is the order of sums."""
    x, labels, present = make_rows(300, 33, 9)
    leaf = x.clone().requires_grad_()
    cpu = OPS[op](leaf, labels, present, temperature=0.1, backend="cpu")
    cpu.backward()
    loss, grad = contrastive(op, x, labels, present, 0.1, lanes=8)
    torch.testing.assert_close(loss, cpu.detach(), rtol=1e-6, atol=0)
    assert (grad - leaf.grad).norm() <= 1e-5 * leaf.grad.norm()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("temperature", [0.5, 0.01])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_not_finite_in_not_finite_out(op, temperature, bad):
    x, labels, _ = make_rows(40, 7, 3)
    x[20, 3] = bad
    loss, grad = contrastive(op, x, labels, None, temperature, lanes=8)
    assert loss.isnan()
    assert grad.isnan().any()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_embeddings(op, dtype):
    x, labels, _ = make_rows(50, 9, 4, dtype)
    loss, grad = contrastive(op, x, labels, lanes=4)
    for factor in (2.0**8, 2.0**-6) if dtype == torch.float16 else (2.0**60, 2.0**-30):
        scaled, scaled_grad = contrastive(op, x * factor, labels, lanes=4)
        torch.testing.assert_close(scaled, loss)
        if dtype != torch.float16:
            torch.testing.assert_close(scaled_grad * factor, grad)
    x[3] = 0  # F.normalize: 0, and no projection in its gradient
    truth = reference(op, x.double(), labels, None, 0.5)
    ours = contrastive(op, x, labels, lanes=4)
    torch.testing.assert_close(ours[0].double(), truth[0], rtol=1e-6, atol=0)
    if dtype == torch.float32:
        torch.testing.assert_close(ours[1].double(), truth[1], rtol=1e-4, atol=1e-6)
    check(op, x[:1].repeat(50, 1), labels, None, 0.1, lanes=4)  # every similarity is its bound


@pytest.mark.parametrize("op", OPS)
def test_same_bits_every_run(op):
    x, labels, present = make_rows(90, 20, 6)
    first = contrastive(op, x, labels, present, lanes=8)
    again = contrastive(op, x, labels, present, lanes=8)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
