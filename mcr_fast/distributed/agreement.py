"""What all ranks of a group must ask alike, and how they find out that they do not.

Ranks that call a loss with different options would wait for each other for ever, or read each
other's bytes as something else. So the first collective compares the options: one number each, its
largest and its least over the ranks. Where no rank may wait for its device (`rows=`), a checksum
travels with the rows instead, and a difference makes the loss NaN.
"""

import struct
import zlib
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mcr_fast._checks.ranks import EXCHANGES, read_extremes, same_on_all_ranks
from mcr_fast._checks.tensors import FLOAT_DTYPES

_LOSSES = ("nt_xent", "sup_con")
LABELS = ("None", "integers", "floats")
_NAMES = (
    *("the loss", "temperature", "exchange", "the width D", "the dtype"),
    *("the number of modalities", "labels"),
)


class Asked(NamedTuple):
    """What is asked of a rank, as numbers that ranks can compare."""

    loss: int
    temperature: int  # the bits
    exchange: int
    width: int
    dtype: int
    modalities: int
    labels: int

    def checksum(self) -> int:
        """32 bits of all numbers."""
        return zlib.crc32(repr(tuple(self)).encode())


class Agreed(NamedTuple):
    """What the ranks have to know of each other."""

    capacity: int  # rows of a rank's block, all modalities
    marked: bool  # whether blocks hold rows that do not count
    derived: bool  # whether a rank wants the gradient


def asked(
    loss: str, temperature: float, exchange: str, x: Tensor, modalities: int, labels: str
) -> Asked:
    """The numbers of a call."""
    (bits,) = struct.unpack("<q", struct.pack("<d", temperature))
    return Asked(
        _LOSSES.index(loss),
        bits,
        EXCHANGES.index(exchange),
        x.shape[1],
        FLOAT_DTYPES.index(x.dtype),
        modalities,
        LABELS.index(labels),
    )


def agree(
    group: Any,
    what: Asked,
    num_rows: int,
    marked: bool,
    derived: bool,
    device: torch.device,
    name: str,
) -> Agreed:
    """Compare the calls of all ranks; the host waits for it.

    Raises:
        ValueError: the ranks differ, or one has bad arguments; raised on all of them.
    """
    mine = [*what, num_rows, int(marked), int(derived), 0]
    largest, least = _extremes(group, mine, device)
    if largest[-1] > 0:
        raise ValueError(
            f"another rank of process_group called {name} with bad arguments; the error that it "
            "raised says which"
        )
    same_on_all_ranks(name, largest, least, _NAMES, _word)
    most, marks, derives = largest[len(_NAMES) : -1]
    return Agreed(most, least[len(_NAMES)] != most or marks > 0, derives > 0)


def agree_to_raise(group: Any, device: torch.device) -> None:
    """What a rank with bad arguments does before it raises, so that no other waits for it."""
    _extremes(group, [0] * (len(_NAMES) + 3) + [1], device)


def _extremes(group: Any, mine: list[int], device: torch.device) -> tuple[list[int], list[int]]:
    """The largest and the least of each number over the ranks."""
    found = torch.tensor([*mine, *(-value for value in mine)], device=device)
    torch.distributed.all_reduce(found, torch.distributed.ReduceOp.MAX, group)
    return read_extremes(found)


def _word(place: int, value: int) -> object:
    """What a number of `Asked` stands for."""
    name = Asked._fields[place]
    if name == "temperature":
        return struct.unpack("<d", struct.pack("<q", value))[0]
    known: dict[str, tuple[Any, ...]] = {
        "loss": _LOSSES,
        "exchange": EXCHANGES,
        "dtype": FLOAT_DTYPES,
        "labels": LABELS,
    }
    return known[name][value] if name in known else value
