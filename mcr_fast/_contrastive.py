"""The contrastive losses as modules."""

from collections.abc import Sequence
from typing import Any, NoReturn

from torch import Tensor

from mcr_fast import _checks as checks
from mcr_fast import functional
from mcr_fast._checks import Backend
from mcr_fast._checks.ranks import Exchange
from mcr_fast._torchscript import refuse_script
from mcr_fast.distributed.held import OfRanks


class NTXentLoss(OfRanks):
    """`functional.nt_xent` as a module.

    Args:
        temperature: above 0.
        process_group, exchange, rows: over whose rows, as of the function. A copy of the module
            shares the group; a pickle cannot have it, a state_dict has nothing of it.
        backend: None for the best one, or ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"``.

    Example:
        >>> import torch, mcr_fast
        >>> mcr_fast.NTXentLoss()([torch.eye(2), torch.eye(2)], torch.tensor([0, 1]))
        tensor(0.2395)
    """

    _loss = staticmethod(functional.nt_xent)

    def __init__(
        self,
        temperature: float = 0.5,
        *,
        process_group: Any = None,
        exchange: Exchange = "gather",
        rows: int | None = None,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.temperature = checks.positive("temperature", temperature)
        checks.known_backend(backend)
        self.backend = backend
        self._set_ranks(process_group, exchange, rows)

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script(type(self).__name__)

    def extra_repr(self) -> str:
        """The options."""
        return f"temperature={self.temperature}{self._repr_of_ranks()}, backend={self.backend!r}"

    def forward(
        self,
        embeddings: Tensor | Sequence[Tensor],  # M tensors [N, D], or one [L, D]
        labels: Tensor | None = None,  # [N] or [L]
        *,
        present: Tensor | None = None,  # [N, M] or [L] bool
    ) -> Tensor:  # []
        """The loss; arguments as of the function in `functional`."""
        return self._loss(
            embeddings,
            labels,
            temperature=self.temperature,
            present=present,
            process_group=self.process_group,
            exchange=self.exchange,
            rows=self.rows,
            backend=self.backend,
        )


class SupConLoss(NTXentLoss):
    """`functional.sup_con` as a module.

    Args:
        temperature: above 0.
        process_group, exchange, rows: over whose rows, as of the function. A copy of the module
            shares the group; a pickle cannot have it, a state_dict has nothing of it.
        backend: None for the best one, or ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"``.

    Example:
        >>> import torch, mcr_fast
        >>> mcr_fast.SupConLoss(1.0)([torch.eye(2), torch.eye(2)], torch.tensor([0, 1]))
        tensor(0.5514)
    """

    _loss = staticmethod(functional.sup_con)

    def __init__(
        self,
        temperature: float = 0.1,
        *,
        process_group: Any = None,
        exchange: Exchange = "gather",
        rows: int | None = None,
        backend: Backend | None = None,
    ) -> None:
        how = {"process_group": process_group, "exchange": exchange, "rows": rows}
        super().__init__(temperature, **how, backend=backend)
