"""Fusions that add up: logits = head(sum over modalities of P_m(Z_m), plus a bias)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from mcr_fast import _checks as checks
from mcr_fast._columns import (
    LinearColumns,
    check_dtype,
    check_in_features,
    check_widths,
    linear_columns,
    linear_in_float32,
)
from mcr_fast._wrapping import (
    base_of,
    calls_its_class,
    has_hooks,
    plain_linear,
    plain_values,
    read_linear,
    wrapped,
)
from mcr_fast.ops._modes import autocast_enabled

__all__ = ["AdditiveFusion"]


class AdditiveFusion(nn.Module):
    """A fusion that adds up one projection of each modality: the fast path of `MCRLoss`.

    logits = head(sum_m P_m(Z_m) + bias)

    Late fusion of linear classifiers and a linear layer on concatenated latents are such fusions
    without a head; an MLP on concatenated latents is one whose head is all but its first layer.

    Args:
        projections: the P_m, M >= 2 modules that map Z_m [N, ...] to [N, H].
        bias: [H]; a Parameter is registered as one, any other tensor as a buffer. None for 0.
        head: module from [N, H] to logits [N, C]; None if the sum is the logits.

    Raises:
        ValueError: fewer than 2 projections; a bias that is not 1-D.
        TypeError: a projection or head that is not a module, a bias that is not a float tensor.

    Note:
        In the game of `MCRLoss` a projection belongs to its modality; bias and head are shared.
        Projections and head are called as modules, so hooks, adapters and whatever else takes part
        in a call counts. A projection that works in place gets a copy of the latents. Under
        autocast linear projections without a head stay in float32: their sum is the logits.

    Reference:
        The fusions of the experiments of arXiv 2411.07335: linear and MLP on joined latents.

    Example:
        >>> import torch, mcr_fast
        >>> fusion = mcr_fast.AdditiveFusion([torch.nn.Linear(4, 3), torch.nn.Linear(5, 3)])
        >>> fusion([torch.zeros(2, 4), torch.zeros(2, 5)]).shape
        torch.Size([2, 3])
    """

    bias: Tensor | None
    head: nn.Module | None

    def __init__(
        self,
        projections: Sequence[nn.Module],
        bias: Tensor | None = None,
        head: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if len(projections) < 2:
            raise ValueError(
                f"projections must be at least 2, one a modality, got {len(projections)}"
            )
        for m, projection in enumerate(projections):
            if not isinstance(projection, nn.Module):
                raise TypeError(
                    f"projections[{m}] must be a module, got {type(projection).__name__}"
                )
        _check_bias_and_head(bias, head)
        self.projections = nn.ModuleList(projections)
        if isinstance(bias, nn.Parameter) or bias is None:
            self.register_parameter("bias", bias)
        else:
            self.register_buffer("bias", bias)
        self.head = head

    @classmethod
    def from_linear(cls, linear: nn.Linear, latent_dims: Sequence[int]) -> "AdditiveFusion":
        """The fusion that a linear layer over the concatenated latents is.

        Args:
            linear: nn.Linear(sum of latent_dims, C); its parameters are shared, not copied. One
                that computes something of its own (a subclass, an adapter, hooks) is called as a
                whole, which is slower and shares all of its parameters.
            latent_dims: the widths D_m, in the order of the concatenation.

        Raises:
            ValueError: latent_dims that do not add up to ``linear.in_features``.
            TypeError: something that is not an nn.Linear.
        """
        return _LinearFusion(linear, latent_dims, None)

    @classmethod
    def from_sequential(cls, seq: nn.Sequential, latent_dims: Sequence[int]) -> "AdditiveFusion":
        """The fusion that an MLP over the concatenated latents is: its first layer, and the rest.

        Args:
            seq: nn.Sequential that starts with nn.Linear(sum of latent_dims, H); its modules, as
                they are now, are shared, not copied.
            latent_dims: the widths D_m, in the order of the concatenation.

        Raises:
            ValueError: latent_dims that do not add up to the first layer's in_features.
            TypeError: not an nn.Sequential, or one that does not start with an nn.Linear, or whose
                call is more than its layers (a forward of its own, hooks on the sequence).
        """
        if not isinstance(seq, nn.Sequential) or len(seq) == 0:
            raise TypeError(f"seq must be an nn.Sequential with layers, got {type(seq).__name__}")
        if type(seq).forward is not nn.Sequential.forward or not calls_its_class(seq):
            raise TypeError(
                f"seq must be no more than its layers, but this {type(seq).__name__} has a forward "
                "or hooks of its own; pass it as fusion=lambda z: seq(torch.cat(z, -1)) instead"
            )
        first, *rest = seq
        return _LinearFusion(first, latent_dims, nn.Sequential(*rest) if rest else None)

    @property
    def num_modalities(self) -> int:
        """M."""
        return len(self.projections)

    def project(self, modality: int, latent: Tensor) -> Tensor:
        """P_m(Z_m): the latent [rows, ...] of one modality to [rows, H]."""
        projection = self.projections[modality]
        if not plain_linear(projection):
            # a layer that works in place would overwrite the caller's latents
            projected: Tensor = projection(latent.clone())
            return projected
        if not autocast_enabled(latent.device):
            weight = projection._parameters.get("weight")  # one that is computed is not read twice
            if weight is not None:
                check_dtype(modality, latent, weight)
            return projection(latent)
        if self.head is None:
            return linear_in_float32(latent, *read_linear(projection))
        return projection(latent)

    def contributions(self, latents: Sequence[Tensor]) -> Tensor:
        """The A_m = P_m(Z_m), stacked to [M, N, H]."""
        parts = checks.modalities("latents", latents)
        if len(parts) != self.num_modalities:
            raise ValueError(
                f"latents must hold {self.num_modalities} modalities, got {len(parts)}"
            )
        return torch.stack([self.project(m, z) for m, z in enumerate(parts)])

    def forward(self, latents: Sequence[Tensor]) -> Tensor:
        """Latents, M tensors, to logits [N, C]."""
        return finish(self, self.contributions(latents))


def _check_bias_and_head(bias: Tensor | None, head: nn.Module | None) -> None:
    if bias is not None:
        checks.float_tensor("bias", bias)
        if bias.ndim != 1:
            raise ValueError(f"bias must have shape [H], got {list(bias.shape)}")
    if head is not None and not isinstance(head, nn.Module):
        raise TypeError(f"head must be a module, got {type(head).__name__}")


# What the regularizer takes for an additive fusion.
Additive = AdditiveFusion | LinearColumns


def finish(fusion: Additive, contributions: Tensor) -> Tensor:  # [M, N, H] -> [N, C]
    """The logits of contributions that are at hand."""
    hidden = contributions.sum(0)
    if fusion.bias is not None:
        hidden = hidden + fusion.bias
    if isinstance(fusion, LinearColumns):
        dtype = fusion.called_dtype()
        hidden = hidden if hidden.dtype == dtype else hidden.to(dtype)
    return hidden if fusion.head is None else fusion.head(hidden)


class _LinearFusion(AdditiveFusion):
    """An additive fusion whose projections are column blocks of one linear layer."""

    def __init__(
        self, linear: nn.Module, latent_dims: Sequence[int], head: nn.Module | None
    ) -> None:
        nn.Module.__init__(self)
        if not isinstance(linear, nn.Linear):
            raise TypeError(
                f"the first layer must be an nn.Linear, got {type(linear).__name__}; wrap or "
                "compile the fusion that is made here and not the layer, or pass any callable"
            )
        self.latent_dims = checks.latent_dims(latent_dims)
        if not isinstance(linear, nn.LazyLinear):  # which learns its width at the first call
            check_in_features(linear, self.latent_dims)
        self.linear = linear
        self.head = head

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        return self.linear.bias

    @property
    def num_modalities(self) -> int:
        return len(self.latent_dims)

    def columns(self) -> LinearColumns | None:
        """The layer's columns by modality; None if it has to be called as a whole."""
        if not plain_linear(self.linear):
            return None
        return linear_columns(self.linear, self.latent_dims, self.head)

    def _known_columns(self) -> LinearColumns:
        columns = self.columns()
        if columns is None:
            raise TypeError(
                f"this {type(self.linear).__name__} computes something of its own (a forward, "
                "hooks, an adapter, a special weight): it has no contributions by modality; call "
                "the fusion as a whole"
            )
        return columns

    def project(self, modality: int, latent: Tensor) -> Tensor:
        return self._known_columns().project(modality, latent)

    def contributions(self, latents: Sequence[Tensor]) -> Tensor:
        checks.modalities("latents", latents)
        return self._known_columns().contributions(latents)

    def forward(self, latents: Sequence[Tensor]) -> Tensor:
        check_widths(checks.modalities("latents", latents), self.latent_dims)
        hidden: Tensor = self.linear(torch.cat(tuple(latents), dim=1))
        return hidden if self.head is None else self.head(hidden)


# What a subclass would override to be another function than the class it comes from.
_ADDITIVE_MEMBERS = ("forward", "project", "contributions", "__call__")


def adds_up(fusion: object) -> bool:
    """Whether a fusion is what its projections, bias and head say, but for hooks."""
    if not isinstance(fusion, AdditiveFusion) or "forward" in fusion.__dict__:
        return False
    base = _LinearFusion if isinstance(fusion, _LinearFusion) else AdditiveFusion
    return all(getattr(type(fusion), n) is getattr(base, n) for n in _ADDITIVE_MEMBERS)


def as_additive(fusion: object, latent_dims: tuple[int, ...]) -> Additive | None:
    """The fusion as the fast path takes it, None unless that provably equals calling it.

    This reads the weight of a linear layer, as a call would: once a step, since reading may do
    more (a step of spectral norm).
    """
    part = _adding_part(fusion)
    if part is None and not isinstance(fusion, AdditiveFusion):
        _refuse_earlier_import(fusion)
    if isinstance(part, _LinearFusion):
        return part.columns()
    return linear_columns(part, latent_dims) if isinstance(part, nn.Linear) else part


def adds_up_to_logits(fusion: object) -> bool:
    """Whether `as_additive` gives a fusion without a head; no weight is read to say so."""
    part = _adding_part(fusion)
    if isinstance(part, AdditiveFusion) and part.head is not None:
        return False
    if isinstance(part, _LinearFusion):
        part = part.linear if plain_linear(part.linear) else None
    weight = part._parameters.get("weight") if isinstance(part, nn.Linear) else None
    return part is not None and (weight is None or plain_values(weight))


def unread_layer(fusion: object, latent_dims: tuple[int, ...]) -> nn.Linear | None:
    """The linear layer that a fusion is, if reading its weight is no more than that."""
    if isinstance(fusion, _LinearFusion):
        if fusion.head is not None or not adds_up(fusion) or has_hooks(fusion):
            return None
        if fusion.latent_dims != latent_dims:
            return None
        fusion = fusion.linear
    if type(fusion) is not nn.Linear or not plain_linear(fusion):
        return None
    computed = fusion._forward_pre_hooks or "weight" not in fusion._parameters
    return None if computed else fusion


def _adding_part(fusion: object) -> AdditiveFusion | nn.Linear | None:
    """What adds up in a fusion: torch's wrappers compute what they wrap."""
    while isinstance(fusion, nn.Module) and not has_hooks(fusion):
        inner = wrapped(fusion)
        if inner is None:
            break
        fusion = inner
    if isinstance(fusion, AdditiveFusion):
        return fusion if adds_up(fusion) and not has_hooks(fusion) else None
    return fusion if plain_linear(fusion) else None


def _refuse_earlier_import(fusion: object) -> None:
    """Run as any other callable its projections would be shared ones, with other gradients."""
    name, module = AdditiveFusion.__name__, AdditiveFusion.__module__
    # the name first: the compiler of torch 2.10 fails on __module__ of a function's type
    if any(kind.__name__ == name and kind.__module__ == module for kind in type(fusion).__mro__):
        raise TypeError(
            "fusion is an AdditiveFusion of an earlier import of mcr_fast, which this one does not "
            "know; make it anew from its layers, or use the MCRLoss of that import"
        )


def first_layer(fusion: AdditiveFusion) -> tuple[nn.Module, tuple[int, ...]] | None:
    """The layer over joined latents that a fusion was made from, and their widths, or None."""
    return (fusion.linear, fusion.latent_dims) if isinstance(fusion, _LinearFusion) else None


def projections_of(fusion: AdditiveFusion) -> list[nn.Module]:
    """The projections of a fusion that has them as modules."""
    return [*fusion.projections]


def additive_linear(fusion: object) -> nn.Linear | None:
    """The linear layer that an additive fusion is but for hooks, None if there is none."""
    linear = fusion.linear if isinstance(fusion, _LinearFusion) and adds_up(fusion) else fusion
    if isinstance(linear, nn.Linear) and base_of(type(linear)) is nn.Linear:
        return linear
    return None
