"""What the exchanges of the distributed losses cost a rank: bytes sent, and bytes held."""

from unittest import mock

import torch
import torch.distributed as dist
from rank_cases import ROWS, of_group, tensors
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mcr_fast.distributed import collectives
from mcr_fast.distributed.collectives import Columns, Home


class Sent:
    """Bytes that this rank gives away, by the collectives."""

    def __init__(self):
        self.bytes = 0

    def gather(self, out, mine, group):
        self.bytes += mine.nbytes
        return self.real(out, mine, group)

    real = staticmethod(collectives._gather)


def bytes_of_gather(rank, world):
    width, rows = 64, 2 * ROWS
    for dtype in (torch.float32, torch.bfloat16):
        for present, mark in ((None, 0), (torch.ones(ROWS, 2, dtype=torch.bool), 1)):
            sent = Sent()
            with mock.patch.object(collectives, "_gather", sent.gather):
                of_group(tensors(rank, width=width, dtype=dtype), present=present).backward()
            a_row = width * dtype.itemsize + 8 + 2 * 4 + mark  # embeddings, a code, two statistics
            # and the checksum, with two sums
            assert sent.bytes == rows * a_row + 8 + 16, (dtype, mark)


class Live(TorchDispatchMode):
    """The most bytes that lived at once of what was made inside."""

    def __init__(self):
        super().__init__()
        self.made, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        taken = {x.untyped_storage()._cdata for x in tree_leaves(args) if isinstance(x, Tensor)}
        for x in (x for x in tree_leaves(out) if isinstance(x, Tensor)):
            storage = x.untyped_storage()
            if storage._cdata not in taken:  # no view of something else
                self.made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        living = [size for ref, size in self.made.values() if not ref.expired()]
        self.most = max(self.most, sum(living))
        return out


def held(kind, rank, world):
    """Bytes of other ranks' rows, and what else an exchange receives into."""
    rows, width = 32, 256
    own = Columns(torch.zeros(rows, width), torch.zeros(rows, dtype=torch.int64), None, 0)
    sums, stats = torch.zeros(2, dtype=torch.float64), torch.zeros(2, rows)
    with Live() as live:
        exchange = kind(dist.group.WORLD, rank, world, Home(own, rows, False, 7))
        for _ in exchange.blocks():
            pass
        exchange.total(sums, stats)
        for _ in exchange.blocks_with_stats():
            pass
    return live.most


def memory_of_a_ring(rank, world):
    at_once, two_blocks = held(collectives.Gather, rank, world), held(collectives.Ring, rank, world)
    assert two_blocks <= (0.5 if world == 4 else 1.0) * at_once, (two_blocks, at_once)
