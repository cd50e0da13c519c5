"""The contrastive losses as modules."""

from collections.abc import Sequence
from typing import NoReturn

from torch import Tensor, nn

from mcr_fast import _checks as checks
from mcr_fast import functional
from mcr_fast._checks import Backend
from mcr_fast._torchscript import refuse_script


class NTXentLoss(nn.Module):
    """`functional.nt_xent` as a module.

    Args:
        temperature: above 0.
        backend: None for the best one, or ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"``.

    Example:
        >>> import torch, mcr_fast
        >>> mcr_fast.NTXentLoss()([torch.eye(2), torch.eye(2)], torch.tensor([0, 1]))
        tensor(0.2395)
    """

    _loss = staticmethod(functional.nt_xent)

    def __init__(self, temperature: float = 0.5, *, backend: Backend | None = None) -> None:
        super().__init__()
        self.temperature = checks.positive("temperature", temperature)
        checks.known_backend(backend)
        self.backend = backend

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script(type(self).__name__)

    def extra_repr(self) -> str:
        """The options."""
        return f"temperature={self.temperature}, backend={self.backend!r}"

    def forward(
        self,
        embeddings: Tensor | Sequence[Tensor],  # M tensors [N, D], or one [L, D]
        labels: Tensor | None = None,  # [N] or [L]
        *,
        present: Tensor | None = None,  # [N, M] or [L] bool
    ) -> Tensor:  # []
        """The loss; arguments as of the function in `functional`."""
        return self._loss(
            embeddings, labels, temperature=self.temperature, present=present, backend=self.backend
        )


class SupConLoss(NTXentLoss):
    """`functional.sup_con` as a module.

    Args:
        temperature: above 0.
        backend: None for the best one, or ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"``.

    Example:
        >>> import torch, mcr_fast
        >>> mcr_fast.SupConLoss(1.0)([torch.eye(2), torch.eye(2)], torch.tensor([0, 1]))
        tensor(0.5514)
    """

    _loss = staticmethod(functional.sup_con)

    def __init__(self, temperature: float = 0.1, *, backend: Backend | None = None) -> None:
        super().__init__(temperature, backend=backend)
