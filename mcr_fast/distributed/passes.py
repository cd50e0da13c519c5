"""The passes of this rank's anchors over the columns of all ranks."""

import math
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from mcr_fast.distributed.collectives import Columns, Gather, Ring
from mcr_fast.ops._contrastive_blocks import (
    contrastive_gradient,
    contrastive_pairs,
    contrastive_sums,
)

Parts = tuple[Tensor, Tensor, Tensor]  # of each anchor: loss, number of positives, log of a sum


class Anchors(NamedTuple):
    """This rank's rows, and how they are compared with columns."""

    own: Columns
    loss: str
    temperature: float
    backend: str | None

    def sums(self, columns: Columns) -> Tensor:
        """Logarithms of the sums over a block."""
        block = (*self.own[:3], *columns, self.loss, self.temperature)
        return contrastive_sums(*block, backend=self.backend)

    def pairs(self, columns: Columns, log_sum: Tensor) -> Parts:
        """What the positives of a block cost, how many they are, and their log W."""
        block = (*self.own[:3], *columns, self.loss, log_sum, self.temperature)
        return contrastive_pairs(*block, backend=self.backend)

    def gradient(self, columns: Columns, stats: Tensor, column_stats: Tensor) -> Tensor:
        """H U of a block."""
        block = (*self.own[:3], *columns, self.loss, stats, column_stats, self.temperature)
        return contrastive_gradient(*block, backend=self.backend)


def value_and_gradient(
    anchors: Anchors, exchange: Gather | Ring, derived: bool, factor: float
) -> tuple[Tensor, Tensor | None]:  # [], [L, D]
    """The global loss, and its derivative by this rank's rows, times a factor, if it is wanted."""
    take = _nt_xent if anchors.loss == "nt_xent" else _sup_con
    sums, stats = take(anchors, exchange)
    total, terms = exchange.total(sums, stats if derived else None)
    some, terms = terms != 0, terms.clamp(min=1)  # NaN stays NaN
    loss = (total / terms).to(stats.dtype)
    if not derived:
        return loss, None
    slopes = reduce(
        Tensor.add_,
        (anchors.gradient(block, stats, others) for block, others in exchange.blocks_with_stats()),
    )
    slopes *= (factor / (anchors.temperature * terms)).to(slopes.dtype)
    grad = through_normalization(anchors.own.rows, anchors.own.marks, slopes)
    return loss, torch.where(some, grad, 0.0)  # without terms, whatever the rows hold


def _nt_xent(anchors: Anchors, exchange: Gather | Ring) -> tuple[Tensor, Tensor]:
    """Sums of (loss, pairs) over the anchors, and (log N, log W) of each."""
    log_sum = reduce(torch.logaddexp, map(anchors.sums, exchange.blocks()))
    total, count, log_weight = reduce(
        _merged, (anchors.pairs(block, log_sum) for block in exchange.blocks())
    )
    return _sums(total, count), torch.stack((log_sum, log_weight))


def _sup_con(anchors: Anchors, exchange: Gather | Ring) -> tuple[Tensor, Tensor]:
    """Sums of (loss, 1) over the anchors that have a positive, and (log sum, 1 / number) of each.

    The logarithm is infinite, and the inverse 0, where a row is no anchor.
    """

    def both(block: Columns) -> Parts:
        log_sum = anchors.sums(block)
        return *anchors.pairs(block, log_sum)[:2], log_sum

    total, count, log_sum = reduce(_merged, map(both, exchange.blocks()))
    is_anchor = count > 0
    inverse = torch.where(is_anchor, 1 / count, 0.0)
    each = torch.where(is_anchor, log_sum + total * inverse, 0.0)
    stats = torch.stack((log_sum.masked_fill(~is_anchor, math.inf), inverse))
    return _sums(each, is_anchor), stats


def _sums(*of_rows: Tensor) -> Tensor:  # [L] each -> [2] float64
    return torch.stack([x.sum(dtype=torch.float64) for x in of_rows])


def _merged(before: Parts, part: Parts) -> Parts:
    """Of two blocks: loss and number of positives added up, logarithms of sums merged."""
    return before[0] + part[0], before[1] + part[1], torch.logaddexp(before[2], part[2])


def through_normalization(
    x: Tensor,  # [L, D]
    marks: Tensor | None,  # [L] bool
    slopes: Tensor,  # [L, D]: by z = x / max(|x|, 1e-12)
) -> Tensor:  # [L, D]
    """The derivative by x: (g - z (z . g)) / |x|, and g / 1e-12 where the norm was clamped."""
    if x.shape[1] == 0:
        return slopes
    x = x.to(slopes.dtype)
    # of rows whose squares leave the range of the dtype too
    largest = x.abs().amax(1, keepdim=True).clamp(min=1e-30)
    z = x / largest
    length = torch.linalg.vector_norm(z, dim=1, keepdim=True)
    clamped = length * largest < 1e-12
    z = z / length
    along = torch.where(clamped, 0.0, (z * slopes).sum(1, keepdim=True))
    inverse = torch.where(clamped, 1e12, (1 / length) / largest)
    grad = torch.where(clamped, slopes, slopes - z * along) * inverse
    return grad if marks is None else torch.where(marks[:, None], grad, 0.0)
