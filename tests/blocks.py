"""What every backend of the contrastive losses' three ops by blocks is held to."""

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import torch
from divergences import assert_same_bits
from tolerances import arithmetic, check_gradient, check_value, eps
from torch import Tensor

from mcr_fast.ops import _contrastive_blocks as ops
from mcr_fast.reference import contrastive_blocks as reference

OPS = ("contrastive_sums", "contrastive_pairs", "contrastive_gradient")
LOSSES = ("nt_xent", "sup_con")


@dataclass
class Block:
    """The arguments of the ops."""

    rows: Tensor  # [R, D]
    row_codes: Tensor
    row_marks: Tensor | None
    columns: Tensor  # [Q, D]
    column_codes: Tensor
    column_marks: Tensor | None
    offset: int
    loss: str
    temperature: float
    log_sum: Tensor  # of the rows
    row_stats: Tensor  # [2, R]
    column_stats: Tensor  # [2, Q]

    def of(self, op: str) -> tuple[Any, ...]:
        """What an op is called with."""
        more = {
            "contrastive_sums": (),
            "contrastive_pairs": (self.log_sum,),
            "contrastive_gradient": (self.row_stats, self.column_stats),
        }
        return (*self.block(), *more[op], self.temperature)

    def block(self) -> tuple[Any, ...]:
        rows = (self.rows, self.row_codes, self.row_marks)
        columns = (self.columns, self.column_codes, self.column_marks)
        return (*rows, *columns, self.offset, self.loss)

    def run(self, backend: str | None) -> list[Tensor]:
        """The sums; the losses, counts and weights; the gradient."""
        sums = ops.contrastive_sums(*self.of(OPS[0]), backend=backend)
        pairs = ops.contrastive_pairs(*self.of(OPS[1]), backend=backend)
        return [sums, *pairs, ops.contrastive_gradient(*self.of(OPS[2]), backend=backend)]

    def map(self, function) -> "Block":
        """With another tensor in the place of each."""
        names = [name for name, x in vars(self).items() if isinstance(x, Tensor)]
        return replace(self, **{name: function(getattr(self, name)) for name in names})

    def double(self) -> "Block":
        return self.map(lambda x: x.double() if x.is_floating_point() else x)


def statistics(block: tuple[Any, ...], temperature: float) -> tuple[Tensor, Tensor]:
    """Sums [R] and statistics [2, R] of rows against the columns, by the float64 reference."""
    loss = block[-1]
    log_sum = reference.contrastive_sums_reference(*block, temperature)
    _, count, log_weight = reference.contrastive_pairs_reference(*block, log_sum, temperature)
    if loss == "nt_xent":
        return log_sum, torch.stack((log_sum, log_weight))
    anchor = count > 0
    share = torch.where(anchor, 1 / count, 0.0)
    return log_sum, torch.stack((log_sum.masked_fill(~anchor, math.inf), share))


def make_block(
    loss: str,
    rows: int,
    columns: int,
    width: int,
    classes: int,  # 0: every row its own
    *,
    offset: int = -1,
    marked: bool = False,
    dtype: torch.dtype = torch.float32,
    temperature: float = 0.5,
    seed: int = 0,
) -> Block:
    """Rows against columns, of which they are a part or not, with what each knows of the other."""
    g = torch.Generator().manual_seed(seed)
    total = columns if offset >= 0 else rows + columns
    x = (torch.randn(total, width, generator=g, dtype=torch.float64) * 3).to(dtype)
    if classes == 0:
        codes = torch.randperm(total, generator=g) - 5
    else:
        codes = torch.randint(classes, (total,), generator=g) * 10**12 - 7
    marks = torch.rand(total, generator=g) > 0.3
    first = offset if offset >= 0 else columns
    sides = []
    for part in (slice(first, first + rows), slice(0, columns)):
        sides.append((x[part].clone(), codes[part], marks[part] if marked else None))
    (a, b), wide = sides, arithmetic(dtype)
    of_rows, of_columns = ((side[0].double(), *side[1:]) for side in sides)
    log_sum, row_stats = statistics((*of_rows, *of_columns, offset, loss), temperature)
    # columns among themselves, or against the rows alone
    others = (*of_columns, 0) if offset >= 0 else (*of_rows, -1)
    column_stats = statistics((*of_columns, *others, loss), temperature)[1]
    given = (t.to(wide) for t in (log_sum, row_stats, column_stats))
    return Block(*a, *b, offset, loss, temperature, *given)


def close_logs(ours: Tensor, truth: Tensor, plain: Tensor, temperature: float, case: str) -> None:
    """Logarithms against the bound; -inf and NaN where the truth has them."""
    for strange in (torch.isneginf, torch.isposinf, torch.isnan):
        assert torch.equal(strange(ours), strange(truth)), f"{case}: {strange.__name__}"
    at = truth.isfinite()
    growth = 1 / temperature
    check_value("nt_xent", ours[at], truth[at], plain[at], growth=growth, case=case)


def bound(block: Block, backend: str) -> None:
    """Each result against the reference in float64, by the bound of the losses."""
    ours, plain = block.run(backend), block.run("reference")
    truth = block.double().run("reference")
    growth, wide = 1 / block.temperature, arithmetic(block.rows.dtype)
    assert all(x.dtype == wide for x in ours)
    close_logs(ours[0], truth[0], plain[0], block.temperature, "log_sum")
    count = truth[2].max().clamp(min=1).item() if len(truth[2]) else 1.0
    check_value(block.loss, ours[1], truth[1], plain[1], growth=count * growth, case="loss")
    assert torch.equal(ours[2], truth[2].to(wide)), "count"
    close_logs(ours[3], truth[3], plain[3], block.temperature, "log_weight")
    check_rows(block, ours[4], truth[4], plain[4])


def check_rows(block: Block, ours: Tensor, truth: Tensor, plain: Tensor) -> None:
    """H U. Of 16-bit rows it is held to what is left of it in their dtype, as of the losses."""
    dtype = block.rows.dtype
    if dtype.itemsize == 2:
        ours, plain = ours.to(dtype), plain.to(dtype)
    # what one pair of rows contributes; the sum may cancel to 0
    case = {"growth": 1 / block.temperature, "floor": 1.0, "case": "gradient"}
    check_gradient(block.loss, ours, truth, plain, **case)


def poison(block: Block) -> Block:
    """With NaN wherever a mark is False, its statistics too."""

    def spoilt(x: Tensor, marks: Tensor | None, dim: int) -> Tensor:
        if marks is None:
            return x
        return torch.where(marks if dim else marks[:, None], x, math.nan)

    return replace(
        block,
        rows=spoilt(block.rows, block.row_marks, 0),
        columns=spoilt(block.columns, block.column_marks, 0),
        log_sum=spoilt(block.log_sum, block.row_marks, 1),
        row_stats=spoilt(block.row_stats, block.row_marks, 1),
        column_stats=spoilt(block.column_stats, block.column_marks, 1),
    )


def unmarked(block: Block, backend: str) -> None:
    """What rows without a mark hold, on either side, changes no bit; they get nothing."""
    results = block.run(backend)
    assert_same_bits(poison(block).run(backend), results)
    sums, loss, count, log_weight, grad = results
    out = ~block.row_marks
    assert sums[out].isneginf().all()
    assert not loss[out].any()
    assert not count[out].any()
    assert block.loss == "sup_con" or log_weight[out].isneginf().all()
    assert not grad[out].any()


def not_a_number(block: Block, backend: str) -> None:
    """NaN in a row, or in a column, comes out wherever the reference has it."""
    for side, at in product(("rows", "columns"), (0, -1)):
        x = getattr(block, side).clone()
        x[at, 0] = math.nan
        spoilt = replace(block, **{side: x})
        truth = spoilt.double().run("reference")
        for name, ours, wanted in zip("slcwg", spoilt.run(backend), truth, strict=True):
            assert torch.equal(ours.isnan(), wanted.isnan()), f"{name} of {side} {at}"


def merged(block: Block, backend: str, cut: int) -> None:
    """Two blocks of columns come to what one does."""
    whole = block.run(backend)
    parts = []
    for part in (slice(0, cut), slice(cut, None)):
        marks = block.column_marks
        inside = part.start <= block.offset < (part.stop or len(block.columns))
        cut_block = replace(
            block,
            columns=block.columns[part],
            column_codes=block.column_codes[part],
            column_marks=None if marks is None else marks[part],
            column_stats=block.column_stats[:, part].contiguous(),
            offset=block.offset - part.start if inside else -1,
        )
        parts.append(cut_block.run(backend))
    scale = 1 + 1 / block.temperature
    bounds = {"rtol": 64 * eps(whole[0].dtype), "atol": 8 * eps(whole[0].dtype) * scale}
    for i, merge in enumerate((torch.logaddexp, torch.add, torch.add, torch.logaddexp, torch.add)):
        together = merge(parts[0][i], parts[1][i])
        unit = whole[4].abs().max().clamp(min=1).item() if i == 4 else whole[i].numel()
        torch.testing.assert_close(
            together,
            whole[i],
            **(bounds | {"atol": bounds["atol"] * unit if i else bounds["atol"]}),
        )


# R, Q, D, classes, offset: ragged, aligned, one class, all distinct, one column, no common label
SHAPES = {
    "ragged": (5, 9, 7, 3, -1),
    "inside": (33, 70, 37, 5, 30),
    "same": (70, 70, 16, 1, 0),
    "distinct": (40, 64, 5, 0, 3),
    "one": (1, 1, 3, 1, 0),
    "tall": (65, 2, 1, 2, -1),
    "aligned": (64, 128, 32, 6, 64),
}


def empty_blocks(backend: str) -> None:
    """No rows, no columns, no width."""
    for loss, (rows, columns, width) in product(
        LOSSES, [(0, 5, 3), (4, 0, 3), (0, 0, 3), (3, 6, 0)]
    ):
        block = make_block(loss, rows, columns, width, 2, offset=0 if rows == 0 else -1)
        ours, truth = block.run(backend), block.run("reference")
        for a, b in zip(ours, truth, strict=True):
            torch.testing.assert_close(a, b)
