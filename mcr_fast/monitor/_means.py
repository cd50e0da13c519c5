"""Running means of rows of numbers, on the rows' device and without waiting for it."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

Span = Literal["recent", "epoch"]
# Rows [R, F] as steps leave them -> values and their weights, each [R, G] in float64. A value of
# weight 0 counts for nothing, whatever it is.
Derive = Callable[[Tensor], tuple[Tensor, Tensor]]


class Means:
    """Means of the last rows, weighted, and of all rows of an epoch.

    A step fills one row of a table that goes round, which costs it as few operations as the row
    has parts. Everything else is done when the table is full, and when somebody reads.

    Args:
        parts: how many numbers each part of a row has, F in all; None: one, a 0-d part.
        num_means: G, what is derived of them.
        derive: how.
        window: rows of the table, and the last ones that count as recent.
        decay: None, or what the weight of a row is multiplied by with each later one: recent
            means are then exponential ones.
    """

    def __init__(
        self,
        parts: tuple[int | None, ...],
        num_means: int,
        derive: Derive,
        window: int,
        decay: float | None,
    ) -> None:
        self._parts, self._num_means, self._derive = parts, num_means, derive
        self._window, self._decay = window, decay
        self._width = sum(width or 1 for width in parts)
        self.reset()

    def reset(self) -> None:
        """Forget all rows."""
        self._table: Tensor | None = None
        self._rows: list[tuple[Tensor, ...]] = []
        self._at = self._folded = 0  # the next row; rows before this one are in the sums
        self._sums: dict[str, Tensor | None] = {"decayed": None, "epoch": None}

    def reset_epoch(self) -> None:
        """Forget what the epoch's means are of."""
        self._fold()
        self._sums["epoch"] = None

    def next_row(self, like: Tensor) -> tuple[Tensor, ...]:
        """The parts of a row to fill, on the device of a tensor; it replaces the oldest one."""
        if self._table is None:
            self._place(torch.zeros(self._window, self._width, device=like.device))
        elif self._table.device != like.device:
            self._move(like.device)
        if self._at == self._window:
            self._fold()
            self._at = self._folded = 0
        self._at += 1
        return self._rows[self._at - 1]

    def sums(self, span: Span, device: torch.device) -> Tensor:  # [2, G] float64
        """Weighted sums of the values, and of the weights."""
        self._fold()
        if span == "recent" and self._decay is None:
            made = None if self._table is None else self._reduced(self._table, None)
        else:
            made = self._sums["decayed" if span == "recent" else "epoch"]
        if made is None:
            return torch.zeros(2, self._num_means, dtype=_double(device), device=device)
        return made.to(device)

    def _fold(self) -> None:
        """Add the rows that are not in them to the sums."""
        if self._table is None or self._folded == self._at:
            return
        rows = self._table[self._folded : self._at]
        self._folded = self._at
        self._add("epoch", self._reduced(rows, None), 1.0)
        if self._decay is not None:
            ages = torch.arange(len(rows) - 1, -1, -1, device=rows.device)
            factors = torch.pow(self._decay, ages)
            self._add("decayed", self._reduced(rows, factors), self._decay ** len(rows))

    def _add(self, name: str, new: Tensor, kept: float) -> None:
        before = self._sums[name]
        self._sums[name] = new if before is None else torch.add(new, before, alpha=kept)

    @torch.no_grad()
    def _reduced(self, rows: Tensor, factors: Tensor | None) -> Tensor:  # [2, G]
        values, weights = self._derive(rows.to(_double(rows.device)))
        if factors is not None:
            weights = weights * factors[:, None]
        weighted = torch.where(weights == 0, 0.0, values * weights)
        return torch.stack((weighted.sum(0), weights.sum(0)))

    def _place(self, table: Tensor) -> None:
        self._table = table
        self._rows = [_cut(row, self._parts) for row in table.unbind(0)]

    def _move(self, device: torch.device) -> None:
        assert self._table is not None, "there is something to move"
        self._place(self._table.to(device))
        self._sums = {k: None if x is None else x.to(device) for k, x in self._sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Copies of everything, on the CPU."""
        kept = {"table": self._table, **self._sums}
        copies = {k: None if x is None else x.to("cpu", copy=True) for k, x in kept.items()}
        return {"at": self._at, "folded": self._folded, **copies}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where the other one was; `next_row` moves it to its device."""
        self.reset()
        self._sums = {name: state[name] for name in self._sums}
        table = state["table"]
        if table is None:
            return
        wanted = [self._window, self._width]
        if list(table.shape) != wanted:
            raise ValueError(
                f"state_dict is of another monitor: a table of {list(table.shape)} where this one "
                f"has {wanted}; the number of modalities and the window must be the same"
            )
        self._place(table.clone())
        self._at, self._folded = state["at"], state["folded"]


def _cut(row: Tensor, parts: tuple[int | None, ...]) -> tuple[Tensor, ...]:
    pieces = row.split([width or 1 for width in parts])
    return tuple(
        piece[0] if width is None else piece for piece, width in zip(pieces, parts, strict=True)
    )


def _double(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64
