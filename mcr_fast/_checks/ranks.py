"""Checks of what is asked of several processes: the group, and that all of them ask alike."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mcr_fast._names import choice
from mcr_fast._numbers import whole

Exchange = Literal["gather", "ring"]
EXCHANGES: tuple[str, ...] = get_args(Exchange)


class Ranks(NamedTuple):
    """Over which processes a loss is taken, and how their rows come together."""

    process_group: Any  # a ProcessGroup, or a DeviceMesh of one dimension
    exchange: str
    rows: int | None  # most rows of a rank, each modality; None: the ranks agree on it


def ranks(process_group: Any, exchange: object, rows: object) -> Ranks | None:
    """The options of a loss that knows of other processes; None where it is local."""
    choice("exchange", exchange, EXCHANGES)
    most = None if rows is None else whole("rows", rows)
    return None if process_group is None else Ranks(process_group, str(exchange), most)


def group_of(process_group: Any) -> tuple[Any, int, int]:
    """The group itself, this process's rank in it, and its size.

    Raises:
        TypeError, ValueError, RuntimeError: what is no group, or none of this process.
    """
    if not torch.distributed.is_available():
        raise RuntimeError(
            "process_group needs torch.distributed, which this build of torch lacks; leave it None "
            "for the loss of this process's own rows"
        )
    import torch.distributed as dist

    if type(process_group).__name__ == "DeviceMesh":
        process_group = _of_mesh(process_group)
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            "process_group does not contain this rank: new_group gives every process a handle, but "
            "the loss can be called on the group's members only"
        )
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            "process_group must be a torch.distributed.ProcessGroup or a DeviceMesh of one "
            f"dimension, got {type(process_group).__name__}; torch.distributed.group.WORLD is the "
            "group of all processes, after init_process_group"
        )
    try:
        rank = dist.get_rank(process_group)
    except ValueError as error:
        raise RuntimeError(
            "process_group is not known to torch.distributed: it was destroyed, or "
            "init_process_group has been called again since"
        ) from error
    if rank < 0:
        raise ValueError("process_group does not contain this rank")
    return process_group, rank, dist.get_world_size(process_group)


def device_of(group: Any) -> torch.device:
    """One whose tensors the group's collectives take."""
    if "nccl" in str(torch.distributed.get_backend(group)):
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def _of_mesh(mesh: Any) -> Any:
    if mesh.ndim != 1:
        raise ValueError(
            f"process_group must be a DeviceMesh of 1 dimension, got {mesh.ndim}; pass the one "
            "that the batch is spread over, such as mesh['dp']"
        )
    if mesh.get_coordinate() is None:
        raise ValueError("process_group is a DeviceMesh that does not contain this rank")
    return mesh.get_group()


def read_extremes(found: Tensor) -> tuple[list[int], list[int]]:  # [2 * F] int64
    """The largest and the least of every number over the ranks; the host waits for them.

    `found` has the largest of each number, then of its negative.
    """
    values = found.tolist()
    half = len(values) // 2
    return values[:half], [-value for value in values[half:]]


def same_on_all_ranks(
    what: str,
    largest: Sequence[int],
    least: Sequence[int],
    names: Sequence[str],
    word: Callable[[int, int], object],  # what a number stands for, by its place
) -> None:
    """Raise where ranks differ in a number that has a name; all of them raise alike."""
    differ = [
        f"{name} ({word(i, least[i])} and {word(i, largest[i])})"
        for i, name in enumerate(names)
        if largest[i] != least[i]
    ]
    if differ:
        raise ValueError(
            f"all ranks of process_group must call {what} alike, but they differ in "
            + ", ".join(differ)
        )
