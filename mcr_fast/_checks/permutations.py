"""Checks of permutations, in all their public forms."""

from typing import Any

import torch
from torch import Tensor

from mcr_fast import _libraries as libraries
from mcr_fast._checks.tensors import may_read, on_device, plain_tensor, shaped
from mcr_fast._process import first_time
from mcr_fast.sampling import CyclicPermutations


def donors(
    permutations: Any,
    num_modalities: int,
    num_rows: int,
    device: torch.device,
    *,
    in_graph: bool = True,
    read: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """The (order, donors) that the ops take, of permutations in any of their public forms.

    In compiled code their values are checked when it runs, by an op of its own, unless that of the
    loss gets them as they are (not `in_graph`). Nor are they read where a CPU kernel is to do so.
    """
    if permutations is None:
        return None, None
    # by its name too: a sample may be older than this import of the package
    of_another_import = type(permutations).__name__ == "CyclicPermutations"
    if isinstance(permutations, CyclicPermutations) or of_another_import:
        order, donors = _cyclic_donors(permutations, num_modalities, num_rows, device)
    else:
        order, donors = None, _table(permutations, num_modalities, num_rows, device)
    if donors is None:
        return None, None
    if read and may_read(donors):
        _check_values(order, donors)
    elif in_graph and torch.compiler.is_compiling() and device.type == "cpu":
        return _check_in_graph(order, donors)
    return order, donors


def _table(
    permutations: Any, num_modalities: int, num_rows: int, device: torch.device
) -> Tensor:  # [1 or M, K, N]
    if not isinstance(permutations, Tensor):
        raise TypeError(
            "permutations must be an int64 tensor, a cyclic sample of sample_permutations or None, "
            f"got {type(permutations).__name__}"
        )
    table = plain_tensor("permutations", permutations)
    if table.dtype != torch.int64:
        raise TypeError(f"permutations must be torch.int64, got {table.dtype}")
    own = table.ndim == 3
    if (
        table.ndim not in (2, 3)
        or table.shape[-1] != num_rows
        or own
        and len(table) != num_modalities
    ):
        raise ValueError(
            f"permutations must have shape [K, N] or [M, K, N] with M = {num_modalities} and "
            f"N = {num_rows}, got {list(table.shape)}"
        )
    on_device("permutations", table, device, "the batch")
    return table if own else table[None]


def _cyclic_donors(
    sample: CyclicPermutations, num_modalities: int, num_rows: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    order = plain_tensor("permutations.order", sample.order)
    shifts = plain_tensor("permutations.shifts", sample.shifts)
    shaped("permutations.order", order, (num_rows,), "[N]")
    if shifts.ndim not in (1, 2) or shifts.ndim == 2 and len(shifts) != num_modalities:
        raise ValueError(
            f"permutations.shifts must have shape [K] or [M, K] with M = {num_modalities}, "
            f"got {list(shifts.shape)}"
        )
    for name, x in (("permutations.order", order), ("permutations.shifts", shifts)):
        if x.dtype != torch.int64:
            raise TypeError(f"{name} must be torch.int64, got {x.dtype}")
        on_device(name, x, device, "the batch")
    if num_rows <= 1:
        # no pair either way, and the ops need no case for it
        return None, None
    return order, shifts if shifts.ndim == 2 else shifts[None]


def _check_values(order: Tensor | None, donors: Tensor) -> None:
    """A table of permutations, or an order that is one and shifts in 1..N-1."""
    if order is None:
        _check_permutations("permutations", donors if len(donors) > 1 else donors[0])
        return
    _check_permutations("permutations.order", order)
    num_rows = len(order)
    if ((donors < 1) | (donors >= num_rows)).any():
        raise ValueError(f"permutations.shifts must be in 1..N-1 = 1..{num_rows - 1}")


@torch.library.custom_op("mcr_fast::checked_donors", mutates_args=())
def _checked_donors(order: Tensor | None, donors: Tensor) -> list[Tensor]:
    """Copies of what was checked: a compiler keeps an op whose results are used."""
    _check_values(order, donors)
    return [x.clone() for x in (order, donors) if x is not None]


@_checked_donors.register_fake
def _checked_donors_fake(order: Tensor | None, donors: Tensor) -> list[Tensor]:
    return [torch.empty_like(x) for x in (order, donors) if x is not None]


def _check_in_graph(order: Tensor | None, donors: Tensor) -> tuple[Tensor | None, Tensor]:
    checked = _checked_donors(order, donors)
    return (None, checked[0]) if order is None else (checked[0], checked[1])


def _check_permutations(name: str, table: Tensor) -> None:
    """Every row of [..., N] holds each of 0..N-1 once."""
    n = table.shape[-1]
    if table.numel() == 0:
        return
    rows = table.reshape(-1, n)
    first = _first_non_permutation(rows)
    if first >= 0:
        where = (
            [] if table.ndim == 1 else [first] if table.ndim == 2 else divmod(first, table.shape[1])
        )
        place = f"[{', '.join(map(str, where))}]" if where else ""
        raise ValueError(
            f"every row of {name} must be a permutation of 0..{n - 1}, but {name}{place} is "
            f"{rows[first][:16].tolist()}{'...' if n > 16 else ''}"
        )


if libraries.cpu_library_loaded() and first_time("first_non_permutation"):
    torch.library.register_fake("mcr_fast::first_non_permutation", lambda rows: rows.new_empty(()))


def _first_non_permutation(rows: Tensor) -> int:  # [R, N]
    """The first row that does not hold each of 0..N-1 once, or -1."""
    if rows.device.type == "cpu" and libraries.cpu_library_loaded():
        return int(torch.ops.mcr_fast.first_non_permutation(rows))
    n = rows.shape[-1]
    inside = ((rows >= 0) & (rows < n)).all(-1)
    seen = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, rows.clamp(0, n - 1), True)
    good = inside & seen.all(-1)
    return -1 if good.all() else int((~good).nonzero()[0, 0])
