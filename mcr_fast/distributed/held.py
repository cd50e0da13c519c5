"""What a module keeps of the processes that it works with."""

from typing import Any, NoReturn

from torch import nn

from mcr_fast._checks.ranks import Exchange, Ranks, group_of, ranks


class HeldGroup:
    """A process group in a module: copies share it, and no file can have it."""

    def __init__(self, group: Any) -> None:
        self.group = group
        _, self.rank, self.size = group_of(group)  # raises for what is none

    def __deepcopy__(self, memo: dict[int, Any]) -> "HeldGroup":
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a module that holds a process_group cannot be pickled, the group belongs to this "
            "process: save module.state_dict(), or set module.process_group = None before and "
            "give it a group again after loading"
        )


class OfRanks(nn.Module):
    """A loss that can be taken over several processes; without a group it is local."""

    _held: HeldGroup | None = None
    _over_ranks = False  # whether there is another rank
    exchange: Exchange = "gather"
    rows: int | None = None

    def _set_ranks(self, process_group: Any, exchange: Exchange, rows: int | None) -> None:
        ranks(process_group, exchange, rows)
        self.exchange, self.rows = exchange, rows
        self.process_group = process_group

    @property
    def process_group(self) -> Any:
        """The group whose rows the contrastive loss is over, None for this process's own."""
        return None if self._held is None else self._held.group

    @process_group.setter
    def process_group(self, group: Any) -> None:
        self._held = None if group is None else HeldGroup(group)
        self._over_ranks = self._held is not None and self._held.size > 1

    def _ranks(self) -> Ranks | None:
        """The options as `functional.contrastive` takes them."""
        return ranks(self.process_group, self.exchange, self.rows)

    def _rank(self) -> int:
        """Of this process, whose donors are its own; 0 without a group."""
        return 0 if self._held is None else self._held.rank

    def _repr_of_ranks(self) -> str:
        """The options, nothing for a local loss."""
        if self._held is None:
            return ""
        return f", process_group=..., exchange={self.exchange!r}, rows={self.rows}"
