"""How the rows of all ranks come together: gathered at once, or travelling around a ring.

An exchange gives the columns of all ranks block by block. What every row needs to be a column is
its embedding, in its own dtype, the code of its label, and a mark where blocks are padded or rows
are absent. For the gradient two statistics a row follow, when all ranks know theirs.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Columns(NamedTuple):
    """A block of columns, as the ops take it."""

    rows: Tensor  # [Q, D]
    codes: Tensor  # [Q] int64
    marks: Tensor | None  # [Q] bool
    offset: int  # of this rank's first row among the columns; -1: they are another rank's


class Home(NamedTuple):
    """The rows of this rank, and the size of the block that they travel in."""

    own: Columns
    capacity: int
    marked: bool  # whether marks travel
    checksum: int  # of the options, equal on all ranks

    def packed_rows(self) -> Tensor:  # [capacity, D]
        """The embeddings, padded."""
        rows = self.own.rows
        if len(rows) == self.capacity:
            return rows
        padded = rows.new_zeros(self.capacity, rows.shape[1])
        padded[: len(rows)] = rows
        return padded

    def packed_codes(self) -> Tensor:  # [capacity + 1 and the marks' bytes] int64
        """Codes, the checksum, and marks, one byte each."""
        (_, codes, marks, _), count = self.own, len(self.own.rows)
        words = -(-self.capacity // 8) if self.marked else 0
        packed = codes.new_zeros(self.capacity + 1 + words)
        packed[:count] = codes
        packed[self.capacity] = self.checksum
        if self.marked:
            packed[self.capacity + 1 :].view(torch.bool)[:count] = True if marks is None else marks
        return packed

    def packed_stats(self, stats: Tensor) -> Tensor:  # [2, L] -> [2, capacity]
        """The statistics, padded."""
        padded = stats.new_zeros(2, self.capacity)
        padded[:, : stats.shape[1]] = stats
        return padded

    def codes_of(self, packed: Tensor) -> tuple[Tensor, Tensor | None]:
        """Codes and marks of one block, or of many [W, ...]."""
        codes, rest = packed[..., : self.capacity], packed[..., self.capacity + 1 :]
        if not self.marked:
            return codes.reshape(-1), None
        marks = rest.contiguous().view(torch.bool)[..., : self.capacity]
        return codes.reshape(-1), marks.reshape(-1)

    def alike(self, packed: Tensor) -> Tensor:  # [] bool
        """Whether blocks come from ranks that ask for what this one asks."""
        return (packed[..., self.capacity] == self.checksum).all()


class Gather:
    """All ranks' rows at once, O(L_global D) memory: one collective, and one of the statistics."""

    def __init__(self, group: Any, rank: int, size: int, home: Home) -> None:
        self._group, self._size, self._home = group, size, home
        self._offset = rank * home.capacity
        mine, packed = home.packed_rows(), home.packed_codes()
        rows = mine.new_empty(size * home.capacity, mine.shape[1])
        codes = packed.new_empty(size, len(packed))
        for work in (_gather(rows, mine, group), _gather(codes, packed, group)):
            work.wait()
        self.alike = home.alike(codes)
        self._columns = Columns(rows, *home.codes_of(codes), self._offset)
        self._stats: Tensor | None = None

    def blocks(self) -> Iterator[Columns]:
        """The one block."""
        yield self._columns

    def total(self, sums: Tensor, stats: Tensor | None) -> Tensor:  # [2] float64, [2, L] -> [2]
        """The sums over all ranks; with them the statistics of all columns travel."""
        size, note = self._size, sums
        if stats is not None:
            note = torch.cat((sums, self._home.packed_stats(stats).view(-1).view(torch.float64)))
        notes = note.new_empty(size, len(note))
        _gather(notes, note, self._group).wait()
        if stats is not None:
            of_ranks = notes[:, 2:].contiguous().view(stats.dtype).view(size, 2, -1)
            self._stats = of_ranks.transpose(0, 1).reshape(2, -1)
        return notes[:, :2].sum(0)  # in the order of the ranks, the same bits on all of them

    def blocks_with_stats(self) -> Iterator[tuple[Columns, Tensor]]:
        """The one block, and its statistics [2, Q]."""
        assert self._stats is not None, "total() gathers them"
        yield self._columns, self._stats


class Ring:
    """Blocks travel from rank to rank, O(L_local D) memory: a round for each pass over them.

    While one block is worked on, the next one is on its way.
    """

    def __init__(self, group: Any, rank: int, size: int, home: Home) -> None:
        self._group, self._size, self._home = group, size, home
        self._next, self._previous = (rank + 1) % size, (rank - 1) % size
        self._packed = [home.packed_rows(), home.packed_codes()]
        self._stats: Tensor | None = None
        self._spare: list[list[Tensor]] = []
        self._alike = [home.alike(self._packed[1])]

    @property
    def alike(self) -> Tensor:  # [] bool
        """Whether the blocks of the first round come from ranks that ask for the same."""
        return torch.stack(self._alike).all()

    def blocks(self) -> Iterator[Columns]:
        """All ranks' blocks, this one's first."""
        for block in self._round(self._packed):
            yield self._home.own if block is None else self._unpacked(block)

    def total(self, sums: Tensor, stats: Tensor | None) -> Tensor:  # [2] float64, [2, L] -> [2]
        """The sums over all ranks; the statistics will travel with the blocks."""
        self._stats = stats
        of_ranks = sums.new_empty(self._size, 2)
        _gather(of_ranks, sums, self._group).wait()
        return of_ranks.sum(0)  # in the order of the ranks, the same bits on all of them

    def blocks_with_stats(self) -> Iterator[tuple[Columns, Tensor]]:
        """All ranks' blocks and their statistics [2, Q], this one's first."""
        assert self._stats is not None, "total() was given them"
        for block in self._round([*self._packed, self._home.packed_stats(self._stats)]):
            if block is None:
                yield self._home.own, self._stats
            else:
                yield self._unpacked(block), block[2]

    def _unpacked(self, block: list[Tensor]) -> Columns:
        return Columns(block[0], *self._home.codes_of(block[1]), -1)

    def _round(self, mine: list[Tensor]) -> Iterator[list[Tensor] | None]:
        """None for the own block, then the others; each holds until the next one is asked for."""
        current = mine
        for step in range(self._size - 1):
            arriving = self._spare.pop() if self._spare else [torch.empty_like(x) for x in mine]
            arriving += [torch.empty_like(x) for x in mine[len(arriving) :]]
            works = self._pass_on(current, arriving)
            yield current if step else None
            for work in works:
                work.wait()
            if step:
                self._spare.append(current)
            current = arriving
            if len(self._alike) < self._size:
                self._alike.append(self._home.alike(current[1]))
        yield current if self._size > 1 else None
        if self._size > 1:
            self._spare.append(current)

    def _pass_on(self, block: list[Tensor], arriving: list[Tensor]) -> list[Any]:
        """Send a block to the next rank, and take one from the previous rank."""
        import torch.distributed as dist

        moves = []
        for tag, (x, y) in enumerate(zip(block, arriving, strict=True)):
            there, here = {"group_peer": self._next}, {"group_peer": self._previous}
            moves.append(dist.P2POp(dist.isend, _bytes(x), group=self._group, tag=tag, **there))
            moves.append(dist.P2POp(dist.irecv, _bytes(y), group=self._group, tag=tag, **here))
        works: list[Any] = dist.batch_isend_irecv(moves)
        return works


def _gather(out: Tensor, mine: Tensor, group: Any) -> Any:
    """Start to gather equal tensors of all ranks, one after another."""
    import torch.distributed as dist

    # torch 2.13 renamed it, and warns of the old name
    gather: Callable[..., Any] = getattr(dist, "all_gather_single", None) or (
        dist.all_gather_into_tensor
    )
    return gather(_bytes(out).view(-1), _bytes(mine).view(-1), group=group, async_op=True)


def _bytes(x: Tensor) -> Tensor:
    """The same memory as bytes: not every backend of torch.distributed knows every dtype."""
    return x.view(-1).view(torch.uint8)
