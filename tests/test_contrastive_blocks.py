"""The ops by blocks of columns: merged over the blocks they are the losses and their gradients."""

import math

import pytest
import torch
from contrastive import make_rows

from mcr_fast.ops._contrastive_blocks import (
    contrastive_gradient,
    contrastive_pairs,
    contrastive_sums,
)
from mcr_fast.reference.nt_xent import nt_xent_reference
from mcr_fast.reference.sup_con import sup_con_reference

REFERENCES = {"nt_xent": nt_xent_reference, "sup_con": sup_con_reference}
L, D = 23, 7


def blocks_of(sizes):
    start = 0
    for size in sizes:
        yield slice(start, start + size)
        start += size


def by_blocks(loss, x, codes, marks, temperature, anchors, sizes):
    """Sums over the anchors of (loss, terms) and H U, over blocks of columns of these sizes."""
    one = (x[anchors], codes[anchors], None if marks is None else marks[anchors])

    def of(cut):
        others = (x[cut], codes[cut], None if marks is None else marks[cut])
        inside = cut.start <= anchors.start and anchors.stop <= cut.stop
        return *others, (anchors.start - cut.start if inside else -1), loss

    log_sum = torch.full((len(one[0]),), -math.inf, dtype=torch.float64)
    for cut in blocks_of(sizes):
        log_sum = torch.logaddexp(log_sum, contrastive_sums(*one, *of(cut), temperature))
    total, count, log_weight = 0.0, 0.0, torch.full_like(log_sum, -math.inf)
    for cut in blocks_of(sizes):
        part = contrastive_pairs(*one, *of(cut), log_sum, temperature)
        total, count = total + part[0], count + part[1]
        if loss == "nt_xent":
            log_weight = torch.logaddexp(log_weight, part[2])
    return total, count, log_sum, log_weight


def merged(loss, x, codes, marks, temperature, cuts, sizes):
    """Loss and gradient of all rows, of anchors in these cuts and columns in blocks."""
    parts = [by_blocks(loss, x, codes, marks, temperature, cut, sizes) for cut in cuts]
    total, count, log_sum, log_weight = (torch.cat(p) for p in zip(*parts, strict=True))
    stats, terms = torch.stack((log_sum, log_weight)), count.sum().clamp(min=1)
    if loss == "sup_con":
        anchor = count > 0
        total = torch.where(anchor, log_sum + total / count.clamp(min=1), 0.0)
        stats = torch.stack((log_sum.masked_fill(~anchor, math.inf), 1 / count))
        stats[1].masked_fill_(~anchor, 0.0)
        terms = anchor.sum().clamp(min=1).to(x.dtype)
    grad = torch.zeros_like(x)
    for anchors in cuts:
        of = (x[anchors], codes[anchors], None if marks is None else marks[anchors])
        for cut in blocks_of(sizes):
            others = (x[cut], codes[cut], None if marks is None else marks[cut])
            inside = cut.start <= anchors.start and anchors.stop <= cut.stop
            offset = anchors.start - cut.start if inside else -1
            given = (stats[:, anchors], stats[:, cut], temperature)
            grad[anchors] += contrastive_gradient(*of, *others, offset, loss, *given)
    u = torch.nn.functional.normalize(x, dim=1)
    if marks is not None:
        u = torch.where(marks[:, None], u, 0.0)
    grad = grad / (temperature * terms)
    grad = (grad - u * (u * grad).sum(1, keepdim=True)) / x.norm(dim=1, keepdim=True)
    return total.sum() / terms, grad if marks is None else torch.where(marks[:, None], grad, 0.0)


@pytest.mark.parametrize("loss", REFERENCES)
@pytest.mark.parametrize("classes", [0, 1, 4], ids=["distinct", "one", "four"])
@pytest.mark.parametrize("marked", [False, True], ids=["all", "marked"])
@pytest.mark.parametrize("temperature", [0.5, 0.01])
@pytest.mark.parametrize("sizes", [[L], [11, 0, 12]], ids=["one block", "three blocks"])
def test_merged_blocks_are_the_loss(loss, classes, marked, temperature, sizes):
    x, codes, present = make_rows(L, D, classes, torch.float64)
    present = present if marked else None
    cuts = list(blocks_of(sizes))
    ours, grad = merged(loss, x, codes, present, temperature, cuts, sizes)
    leaf = x.clone().requires_grad_()
    truth = REFERENCES[loss](leaf, codes, present, temperature)
    truth.backward()
    torch.testing.assert_close(ours, truth, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(grad, leaf.grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", REFERENCES)
def test_what_unmarked_rows_hold_does_not_matter(loss):
    x, codes, present = make_rows(L, D, 4)
    other = torch.where(present[:, None], x, math.nan)
    for op, more in (
        (contrastive_sums, ()),
        (contrastive_pairs, (torch.zeros(L),)),
        (contrastive_gradient, (torch.zeros(2, L), torch.zeros(2, L))),
    ):
        first, second = (
            op(y, codes, present, y, codes, present, 0, loss, *more, 0.5) for y in (x, other)
        )
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=0)
            assert not b.isnan().any()


@pytest.mark.parametrize("loss", REFERENCES)
def test_a_row_that_is_nan_is_heard(loss):
    x, codes, _ = make_rows(L, D, 1)
    x[3] = math.nan
    sums = contrastive_sums(x, codes, None, x, codes + (loss == "nt_xent"), None, 0, loss, 0.5)
    assert sums.isnan().all()
    stats = torch.zeros(2, L)
    grad = contrastive_gradient(x, codes, None, x, codes, None, 0, loss, stats, stats, 0.5)
    assert grad.isnan().all()


@pytest.mark.parametrize("loss", REFERENCES)
def test_empty_blocks(loss):
    x, codes, _ = make_rows(3, D, 1)
    none = (x[:0], codes[:0], None)
    sums = contrastive_sums(x, codes, None, *none, -1, loss, 0.5)
    assert sums.tolist() == [-math.inf] * 3
    total, count, _ = contrastive_pairs(x, codes, None, *none, -1, loss, sums, 0.5)
    assert total.tolist() == [0.0] * 3 == count.tolist()
    stats = torch.zeros(2, 3)
    grad = contrastive_gradient(x, codes, None, *none, -1, loss, stats, stats[:, :0], 0.5)
    assert grad.tolist() == torch.zeros(3, D).tolist()
    assert contrastive_sums(*none, x, codes, None, -1, loss, 0.5).shape == (0,)
