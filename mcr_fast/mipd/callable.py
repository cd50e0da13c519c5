"""Whose a parameter is in the game, where an additive fusion has to be called as a whole."""

from collections.abc import Sequence

from torch import Tensor, nn

from mcr_fast._wrapping import unwrapped
from mcr_fast.fusion import AdditiveFusion, additive_linear, adds_up


class Owners:
    """The parameters of a fusion that belong to one modality; all others are shared.

    An additive fusion with hooks or in a wrapper runs as any callable does, and its projections
    stay the modalities' own: projections[m] is player m's, and so are m's columns of a linear
    layer.
    """

    def __init__(self, fusion: object, latent_dims: Sequence[int]):
        self._whole: dict[int, int] = {}
        self._columns: dict[int, Sequence[int]] = {}
        inner = unwrapped(fusion)
        linear = additive_linear(inner)
        weight = None if linear is None else linear._parameters.get("weight")
        if weight is not None and weight.shape[1] == sum(latent_dims):
            self._columns[id(weight)] = latent_dims
        elif adds_up(inner) and hasattr(inner, "projections"):
            self._own_projections(inner)
        self.any = bool(self._whole or self._columns)

    def _own_projections(self, fusion: AdditiveFusion) -> None:
        parts: list[nn.Module] = [*fusion.projections]
        owned = [{id(p) for p in part.parameters()} for part in parts]
        others = set() if fusion.head is None else {id(p) for p in fusion.head.parameters()}
        for m, ids in enumerate(owned):
            elsewhere = others.union(*owned[:m], *owned[m + 1 :])
            self._whole.update((key, m) for key in ids - elsewhere)

    def add(self, total: Tensor, x: Tensor, grad: Tensor, route: Sequence[int], head: int) -> None:
        """Add the gradient of x to its total, times the factor of whoever owns x."""
        widths = self._columns.get(id(x))
        if widths is None:
            owner = self._whole.get(id(x))
            total.add_(grad, alpha=head if owner is None else route[owner])
            return
        blocks = zip(total.split(widths, 1), grad.split(widths, 1), route, strict=True)
        for block, grad_block, factor in blocks:
            block.add_(grad_block, alpha=factor)
