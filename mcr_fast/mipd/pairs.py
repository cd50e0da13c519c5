"""The pairs of rows and donors that the engine runs a fusion on, a chunk at a time."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from mcr_fast.game import members
from mcr_fast.mipd.request import Request
from mcr_fast.pairing import checked_donors, pair_weights

# Devices whose donors were looked at before they came here; others are not waited for.
READ_AT_THE_EDGE = ("cpu", "meta")

# Elements of perturbed input in one chunk when `chunk_rows` is None: 16 MB of float32.
CHUNK_ELEMENTS = 1 << 22


class Pairs:
    """Who donates to whom."""

    def __init__(self, request: Request):
        self.request = request
        num_modalities, num_rows = len(request.latents), request.num_rows()
        device = request.latents[0].device
        self.order, donors = request.order, request.donors
        self.valid: Tensor | None = None  # [], 1, or NaN where donors are no permutations
        if donors is None:
            self.order = torch.arange(num_rows, device=device)
            donors = self.order[None, 1:]
        elif device.type not in READ_AT_THE_EDGE:
            like = torch.empty(0, dtype=torch.float32, device=device)
            self.order, donors, self.valid = checked_donors(self.order, donors, num_rows, like)
            assert donors is not None, "there were some"
        self.tables_of = range(len(donors))  # one for all modalities, or one each
        self.donors = donors.expand(num_modalities, *donors.shape[1:])
        self.index = torch.arange(num_rows, device=device)
        self.position = None if self.order is None else self.order.argsort()

    def table(self, modality: int, first: int, last: int, sign: int = 1) -> Tensor:
        """Permutations first..last [permutations, N]: donors, or with -1 receivers."""
        donors = self.donors[modality, first:last]
        if self.order is None or self.position is None:
            return donors if sign == 1 else _inverse(donors)
        # row order[a] takes order[a + shift]
        return self.order[(self.position + sign * donors[:, None]) % max(len(self.index), 1)]

    def chunks(self, chunk_rows: int) -> "Iterator[Chunk]":
        """All pairs: whole permutations as far as they fit, else parts of one."""
        return self._cut(self.donors.shape[1], chunk_rows)

    def clean_chunks(self, chunk_rows: int) -> "Iterator[Chunk]":
        """Every row once."""
        return self._cut(1, chunk_rows)

    def _cut(self, num_permutations: int, chunk_rows: int) -> "Iterator[Chunk]":
        num_rows = len(self.index)
        if num_rows == 0:
            return
        step, part = max(1, chunk_rows // num_rows), min(chunk_rows, num_rows)
        for first in range(0, num_permutations, step):
            for start in range(0, num_rows, part):
                last, stop = min(first + step, num_permutations), min(start + part, num_rows)
                yield Chunk(self, first, last, start, stop)


def _inverse(donors: Tensor) -> Tensor:  # [permutations, N]
    rows = torch.arange(donors.shape[-1], device=donors.device).expand_as(donors)
    return torch.zeros_like(donors).scatter_(-1, donors, rows)


@dataclass(frozen=True)
class Chunk:
    """The pairs of permutations first..last and rows start..stop, permutation by permutation."""

    pairs: Pairs
    first: int
    last: int
    start: int
    stop: int

    def repeat(self, x: Tensor) -> Tensor:  # [N, ...] -> [R, ...]
        """What the row i of every pair has."""
        count = self.last - self.first
        return x[self.start : self.stop].repeat(count, *(1 for _ in x.shape[1:]))

    def cut(self, x: Tensor) -> Tensor:  # [K, N, ...] -> [R, ...]
        """What every pair has of its own."""
        return x[self.first : self.last, self.start : self.stop].flatten(0, 1)

    def fold(self, x: Tensor) -> Tensor:  # [R, ...] -> [permutations, rows, ...]
        """The pairs by permutation."""
        return x.reshape(self.last - self.first, self.stop - self.start, *x.shape[1:])

    def table(self, modality: int, sign: int = 1) -> Tensor:  # [permutations, N]
        """The donor of every row, or with -1 the row that every donor replaces."""
        return self.pairs.table(modality, self.first, self.last, sign)

    def tables(self, sign: int = 1) -> Tensor:  # [1 or M, permutations, N]
        """One for all modalities, or one each."""
        return torch.stack([self.table(m, sign) for m in self.pairs.tables_of])

    def donors(self, modality: int) -> Tensor:  # [R]
        """The donor of every pair."""
        return self.table(modality)[:, self.start : self.stop].reshape(-1)

    def weights(self, subset: int) -> Tensor | None:  # [R]
        """The weight of every pair, 0 if dropped; None if all are 1."""
        asked = self.pairs.request
        if asked.exclude == "none" and asked.present is None and asked.sample_weight is None:
            return None
        modalities = members(subset, len(self.pairs.donors))
        weights = pair_weights(
            [self.table(m) for m in modalities],
            modalities,
            asked.codes,
            asked.present,
            asked.sample_weight,
            exclude=asked.exclude,
        )
        return weights[:, self.start : self.stop].reshape(-1)

    def sum_by_row(self, total: Tensor, x: Tensor, factor: int) -> None:
        """Add factor * x [R, ...] to the rows i of total [N, ...]."""
        rows = total[self.start : self.stop]
        rows.add_(self.fold(x).sum(0, dtype=total.dtype), alpha=factor)

    def sum_by_donor(self, total: Tensor, x: Tensor, modality: int) -> None:
        """Add x [R, ...] to the donor rows of total [N, ...], always in the same order."""
        num_rows = len(self.pairs.index)
        if self.stop - self.start < num_rows:
            # part of one permutation: no donor comes twice, so nothing depends on the order
            total.index_add_(0, self.donors(modality), x.to(total.dtype))
            return
        # whole permutations: row j collects from the row it replaces, no two writers to a row
        receivers = self.table(modality, sign=-1)
        first_pair = torch.arange(len(receivers), device=receivers.device)[:, None] * num_rows
        donated = x[(receivers + first_pair).reshape(-1)]
        total += self.fold(donated).sum(0, dtype=total.dtype)
