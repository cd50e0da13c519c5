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


@dataclass(frozen=True)
class Chunk:
    """The pairs of permutations first..last and rows start..stop, permutation by permutation."""

    first: int
    last: int
    start: int
    stop: int

    def repeat(self, x: Tensor) -> Tensor:  # [N, ...] -> [R, ...]
        """The row i of every pair."""
        count = self.last - self.first
        return x[self.start : self.stop].repeat(count, *(1 for _ in x.shape[1:]))

    def cut(self, x: Tensor) -> Tensor:  # [K, N, ...] -> [R, ...]
        """What each pair has of its own."""
        return x[self.first : self.last, self.start : self.stop].flatten(0, 1)

    def fold(self, pairs: Tensor) -> Tensor:  # [R, ...] -> [permutations, rows, ...]
        """The pairs by permutation."""
        return pairs.reshape(self.last - self.first, self.stop - self.start, *pairs.shape[1:])

    def sum_by_row(self, total: Tensor, pairs: Tensor, factor: int) -> None:
        """Add factor * pairs [R, ...] to the rows i of total [N, ...]."""
        rows = total[self.start : self.stop]
        rows.add_(self.fold(pairs).sum(0, dtype=total.dtype), alpha=factor)


def chunks(num_permutations: int, num_rows: int, chunk_rows: int) -> Iterator[Chunk]:
    """Whole permutations as far as they fit, else parts of one."""
    if num_rows == 0:
        return
    if chunk_rows >= num_rows:
        step = chunk_rows // num_rows
        for first in range(0, num_permutations, step):
            yield Chunk(first, min(first + step, num_permutations), 0, num_rows)
        return
    for k in range(num_permutations):
        for start in range(0, num_rows, chunk_rows):
            yield Chunk(k, k + 1, start, min(start + chunk_rows, num_rows))


class Pairs:
    """Who donates to whom and with what weight, a chunk at a time."""

    def __init__(self, request: Request):
        self.request = request
        num_modalities, num_rows = len(request.latents), request.num_rows
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
        self.count = donors.shape[1]
        self.index = torch.arange(num_rows, device=device)
        self.position = None if self.order is None else self.order.argsort()

    def _table(self, modality: int, chunk: Chunk, sign: int = 1) -> Tensor:  # [permutations, N]
        donors = self.donors[modality, chunk.first : chunk.last]
        if self.order is None or self.position is None:
            return donors if sign == 1 else _inverse(donors)
        # row order[a] takes order[a + shift]
        return self.order[(self.position + sign * donors[:, None]) % max(len(self.index), 1)]

    def tables(self, chunk: Chunk, sign: int = 1) -> Tensor:  # [1 or M, permutations, N]
        """The donor of every row, or with -1 the row that every donor replaces."""
        return torch.stack([self._table(m, chunk, sign) for m in self.tables_of])

    def donors_of(self, modality: int, chunk: Chunk) -> Tensor:  # [R]
        """The donor of every pair."""
        return self._table(modality, chunk)[:, chunk.start : chunk.stop].reshape(-1)

    def weights(self, subset: int, chunk: Chunk) -> Tensor | None:  # [R]
        """The weight of every pair, 0 if dropped; None if all are 1."""
        asked = self.request
        if asked.exclude == "none" and asked.present is None and asked.sample_weight is None:
            return None
        modalities = members(subset, len(self.donors))
        weights = pair_weights(
            [self._table(m, chunk) for m in modalities],
            modalities,
            asked.codes,
            asked.present,
            asked.sample_weight,
            exclude=asked.exclude,
        )
        return weights[:, chunk.start : chunk.stop].reshape(-1)

    def sum_by_donor(self, total: Tensor, pairs: Tensor, modality: int, chunk: Chunk) -> None:
        """Add pairs [R, ...] to the donor rows of total [N, ...], always in the same order."""
        if chunk.stop - chunk.start < len(self.index):
            # part of one permutation: no donor comes twice, so nothing depends on the order
            total.index_add_(0, self.donors_of(modality, chunk), pairs.to(total.dtype))
            return
        # whole permutations: row j collects from the row it replaces, no two writers to a row
        inverse = self._table(modality, chunk, sign=-1)
        first_pair = torch.arange(len(inverse), device=inverse.device)[:, None] * len(self.index)
        donated = pairs[(inverse + first_pair).reshape(-1)]
        total += chunk.fold(donated).sum(0, dtype=total.dtype)


def _inverse(donors: Tensor) -> Tensor:  # [permutations, N]
    rows = torch.arange(donors.shape[-1], device=donors.device).expand_as(donors)
    return torch.zeros_like(donors).scatter_(-1, donors, rows)
