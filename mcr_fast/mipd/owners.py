"""Whose a parameter is of a fusion that is called: one modality's, or shared by all.

An additive fusion says so itself, wherever it is called: with hooks, in a wrapper or in a function
of the user's its projections are still the modalities' own, and so are a linear layer's columns.
"""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from mcr_fast._wrapping import unwrapped
from mcr_fast.fusion import AdditiveFusion, additive_linear, adds_up, first_layer, projections_of
from mcr_fast.mipd.apart import without_trace
from mcr_fast.mipd.gradients import nodes_behind

_Function = Callable[[list[Tensor]], Tensor]
_Blocks = list[tuple[int, int | None]]  # widths of a layer's columns, and whose they are


_SCRIPTS = ("_LinearFusion", "AdditiveFusion")  # what TorchScript calls additive fusions


class Owners:
    """The parameters of a fusion that belong to one modality; all others are shared."""

    def __init__(self) -> None:
        self._whole: dict[int, int] = {}
        self._columns: dict[int, _Blocks] = {}

    def __bool__(self) -> bool:
        return bool(self._whole or self._columns)

    def own(self, parameter: Tensor, owner: int) -> None:
        """A parameter of one modality."""
        self._whole[id(parameter)] = owner

    def own_columns(self, weight: Tensor | None, blocks: _Blocks) -> None:
        """Columns of the weight of a layer over joined latents, if it has one."""
        if weight is not None and weight.shape[1] == sum(width for width, _ in blocks):
            self._columns[id(weight)] = blocks

    def own_projections(self, fusion: AdditiveFusion, owners: Sequence[int | None]) -> None:
        """Parameters that one projection has and nothing else of the fusion."""
        owned = [_tensors_of(part) for part in projections_of(fusion)]
        others = set() if fusion.head is None else _tensors_of(fusion.head)
        for m, (ids, owner) in enumerate(zip(owned, owners, strict=True)):
            if owner is not None:
                elsewhere = others.union(*owned[:m], *owned[m + 1 :])
                self._whole.update((key, owner) for key in ids - elsewhere)

    def add(self, total: Tensor, x: Tensor, grad: Tensor, route: Sequence[int], head: int) -> None:
        """Add the gradient of x to its total, times the factor of whoever owns x."""
        blocks = self._columns.get(id(x))
        if blocks is None:
            owner = self._whole.get(id(x))
            total.add_(grad, alpha=head if owner is None else route[owner])
            return
        widths = [width for width, _ in blocks]
        pieces = zip(total.split(widths, 1), grad.split(widths, 1), blocks, strict=True)
        for total_block, grad_block, (_, owner) in pieces:
            total_block.add_(grad_block, alpha=head if owner is None else route[owner])


def _weight_of(layer: nn.Module) -> Tensor | None:
    return layer._parameters.get("weight", vars(layer).get("weight"))


def _tensors_of(part: nn.Module) -> set[int]:
    """Its parameters, which FSDP1 may have made attributes for the time of a call."""
    held = [[*m._parameters.values(), *vars(m).values()] for m in part.modules()]
    return {id(x) for values in held for x in values if isinstance(x, Tensor)}


def find_owners(
    fusion: object,
    run: _Function,
    latents: Sequence[Tensor],  # M tensors [N, ..., D_m]
    latent_dims: Sequence[int],
    num_classes: int,
    modules: Sequence[nn.Module],  # that the fusion may run
) -> Owners:
    """The owners of a fusion's parameters; `run` is called with two rows if that has to be seen."""
    owners, inner = Owners(), unwrapped(fusion)
    linear = additive_linear(inner)
    if isinstance(inner, torch.jit.ScriptModule):
        _own_by_name(owners, inner, latent_dims)
    elif linear is not None:
        owners.own_columns(_weight_of(linear), _in_order(latent_dims))
    elif adds_up(inner):
        if first_layer(inner) is None:
            owners.own_projections(inner, range(len(latents)))
    else:
        if any(getattr(m, "original_name", "") in _SCRIPTS for m in modules):
            raise TypeError(
                "fusion calls TorchScript of an AdditiveFusion, and whose its projections are does "
                "not show there; pass the AdditiveFusion or its TorchScript itself"
            )
        whole = _may_be_whole(inner, modules, sum(latent_dims), num_classes)
        _see_calls(owners, run, latents, modules, whole)
    return owners


def _own_by_name(
    owners: Owners, script: torch.jit.ScriptModule, latent_dims: Sequence[int]
) -> None:
    """The owners in what TorchScript has made of an additive fusion, whose names it keeps."""
    made_of = getattr(script, "original_name", "")
    names: dict[int, list[str]] = {}
    tensors = dict(script.named_parameters(remove_duplicate=False))
    for name, p in tensors.items():
        names.setdefault(id(p), []).append(name)
    if made_of in ("Linear", "_LinearFusion"):
        layer = "" if made_of == "Linear" else "linear."
        others = {n for n in tensors if n.startswith(layer)} - {f"{layer}weight", f"{layer}bias"}
        if others:
            raise TypeError(
                f"fusion is TorchScript of a linear layer that computes its weight, from {others}, "
                "and does not tell its columns apart; pass the layer itself"
            )
        owners.own_columns(tensors.get(f"{layer}weight"), _in_order(latent_dims))
    elif made_of == "AdditiveFusion":
        for p in tensors.values():
            parts = {tuple(name.split(".")[:2]) for name in names[id(p)]}
            first = next(iter(parts))
            if len(parts) == 1 and first[0] == "projections":
                owners.own(p, int(first[1]))


def _may_be_whole(
    fusion: object, modules: Sequence[nn.Module], width: int, num_classes: int
) -> list[nn.Linear]:
    """Layers that may be all that a function of the user's calls, or that a module does."""
    layers = [m for m in modules if additive_linear(m) is m]
    if isinstance(fusion, nn.Module) and sum(1 for m in modules if m._parameters) > 1:
        return []
    return [m for m in layers if (m.in_features, m.out_features) == (width, num_classes)]


def _in_order(latent_dims: Sequence[int]) -> _Blocks:
    return [(width, m) for m, width in enumerate(latent_dims)]


def _see_calls(
    owners: Owners,
    run: _Function,
    latents: Sequence[Tensor],
    modules: Sequence[nn.Module],
    layers: Sequence[nn.Linear],
) -> None:
    """Own what is called with one modality, or is the one of the layers that the function is."""
    fusions = [m for m in modules if isinstance(m, AdditiveFusion)]
    if not fusions and not layers:
        return
    anchors = [z[:2].detach().clone().requires_grad_() for z in latents]
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        stack.enter_context(without_trace(anchors[0].device, modules))
        seen = _Seen(anchors)
        for part in (part for fusion in fusions for part in seen.parts_of(fusion)):
            stack.callback(part.register_forward_pre_hook(seen.note, prepend=True).remove)
        for layer in layers:
            stack.callback(layer.register_forward_hook(seen.note_joined).remove)
        whole = seen.forwarded(run([*seen.inputs]))
    for fusion in fusions:
        first = first_layer(fusion)
        if first is None:
            owners.own_projections(fusion, [seen.owner(p) for p in projections_of(fusion)])
        elif additive_linear(first[0]) is not None:
            owners.own_columns(_weight_of(first[0]), seen.blocks[id(first[0])])
    if whole is not None:
        owners.own_columns(_weight_of(whole), _in_order([z.shape[-1] for z in latents]))


class _Seen:
    """What the parts of fusions were called with, by the modality that it comes from."""

    def __init__(self, anchors: Sequence[Tensor]):
        self.players = {id(x): m for m, x in enumerate(anchors)}
        self.inputs = [x.clone() for x in anchors]
        self.blocks: dict[int, _Blocks] = {}
        self._given = [x.grad_fn for x in self.inputs]
        self._joined: dict[Node, nn.Linear] = {}
        self._behind: dict[int, set[int]] = {}

    def parts_of(self, fusion: AdditiveFusion) -> list[nn.Module]:
        """The projections, or the layer that they are columns of."""
        first = first_layer(fusion)
        if first is None:
            return projections_of(fusion)
        layer, latent_dims = first
        self.blocks[id(layer)] = [(width, None) for width in latent_dims]
        return [layer]

    def owner(self, part: nn.Module) -> int | None:
        """The one modality that all its inputs came from."""
        return _only(self._behind.get(id(part), set()))

    def forwarded(self, output: Tensor) -> nn.Linear | None:
        """The layer over the joined latents whose output this is, as it came."""
        return None if output.grad_fn is None else self._joined.get(output.grad_fn)

    def note(self, part: nn.Module, args: Any) -> None:
        """A part of an additive fusion is called."""
        node = args[0].grad_fn if args and isinstance(args[0], Tensor) else None
        blocks = self.blocks.get(id(part))
        if blocks is None:
            self._behind.setdefault(id(part), set()).update(self._modalities(node))
            return
        known = id(part) in self._behind
        self._behind[id(part)] = set()
        pieces = _pieces(node)
        found = [_only(self._modalities(n)) for n in pieces]
        if len(found) != len(blocks):
            found = [None] * len(blocks)
        for i, (width, owner) in enumerate(blocks):
            blocks[i] = width, found[i] if owner == found[i] or not known else None

    def note_joined(self, layer: nn.Linear, args: Any, output: Tensor) -> None:
        """A layer that may be the whole function was called."""
        node = args[0].grad_fn if args and isinstance(args[0], Tensor) else None
        if output.grad_fn is not None and _pieces(node) == self._given:
            self._joined[output.grad_fn] = layer

    def _modalities(self, node: Node | None) -> set[int]:
        leaves = (getattr(n, "variable", None) for n in nodes_behind(node, set()))
        return {self.players[id(x)] for x in leaves if id(x) in self.players}


def _only(found: set[int]) -> int | None:
    return next(iter(found)) if len(found) == 1 else None


def _pieces(node: Node | None) -> list[Node | None]:
    """Where the pieces of a concatenation come from; nowhere if it is something else."""
    if node is None or not node.name().startswith("CatBackward"):
        return []
    return [piece for piece, _ in node.next_functions]
