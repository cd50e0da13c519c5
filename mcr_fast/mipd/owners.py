"""Whose a parameter is of a fusion that is called: one modality's, or shared by all.

An additive fusion says so itself, wherever it is called: with hooks, in a wrapper or in a function
of the user's its projections are still the modalities' own, and so are a linear layer's columns.
"""

import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge

from mcr_fast._wrapping import unwrapped
from mcr_fast.fusion import AdditiveFusion, additive_linear, adds_up, first_layer, projections_of
from mcr_fast.mipd.apart import without_trace
from mcr_fast.mipd.gradients import nodes_behind
from mcr_fast.mipd.source import Turn
from mcr_fast.mipd.uses import Call, Calls, Edge, Heard, uses_in

_Function = Callable[[list[Tensor]], Tensor]
_Blocks = list[tuple[int, int | None]]  # widths of a layer's columns, and whose they are
_Share = int | _Blocks | None  # a modality's, columns of several, or shared by all


_SCRIPTS = ("_LinearFusion", "AdditiveFusion")  # what TorchScript calls additive fusions


class Owners:
    """The parameters of a fusion that belong to one modality; all others are shared.

    One that has uses of several owners, or one and another use that is shared, is split: every use
    counts for itself.
    """

    def __init__(self) -> None:
        self._whole: dict[int, int] = {}
        self._columns: dict[int, _Blocks] = {}
        self._shares: dict[int, Sequence[_Share]] = {}  # of the calls of a part
        self._parts: list[nn.Module] = []
        self.split: set[int] = set()

    def __bool__(self) -> bool:
        return bool(self._whole or self._columns or self.split)

    def own(self, parameter: Tensor, owner: int) -> None:
        """A parameter of one modality."""
        self._whole[id(parameter)] = owner

    def own_columns(self, weight: Tensor | None, blocks: _Blocks) -> None:
        """Columns of the weight of a layer over joined latents, if it has one."""
        if weight is not None and weight.shape[1] == sum(width for width, _ in blocks):
            self._columns[id(weight)] = blocks

    def own_projections(self, fusion: AdditiveFusion, owners: Sequence[int | None]) -> None:
        """Parameters of projections; those with another use in the fusion are split."""
        projections = projections_of(fusion)
        owned = [_tensors_of(part).keys() for part in projections]
        others = {id(fusion.bias)}
        if fusion.head is not None:
            others.update(_tensors_of(fusion.head))
        for m, (ids, owner) in enumerate(zip(owned, owners, strict=True)):
            elsewhere = others.union(*owned[:m], *owned[m + 1 :])
            if owner is not None:
                self._whole.update((key, owner) for key in ids - elsewhere)
                self.split.update(ids & elsewhere)

    def split_from_head(self, linear: nn.Linear, fusion: object, blocks: _Blocks) -> None:
        """Split the weight of a layer over joined latents if the head after it has it too."""
        head = fusion.head if isinstance(fusion, AdditiveFusion) else None
        if head is not None and id(_weight_of(linear)) in _tensors_of(head):
            self.split.add(id(_weight_of(linear)))
            self.tell_calls(linear, [blocks])

    def tell_calls(self, part: nn.Module, shares: Sequence[_Share]) -> None:
        """Whose the calls of a part are, in their order; any others are shared."""
        self._shares[id(part)] = shares
        self._parts.append(part)

    def split_uses(self, uses: dict[Edge, list[Edge]], calls: Calls) -> None:
        """Split the tensors that a run has used for more than what they were taken for."""
        seen = {id(x): x for part in self._parts for x in _tensors_of(part).values()}
        for key, x in seen.items():
            taken: _Share = self._columns.get(key, self._whole.get(key))
            if not x.requires_grad or taken is None:
                continue
            edges = uses.get(_end_of(x), [])
            shares = [self._share(key, calls.around(node)) for node, _ in edges]
            if any(share != taken for share in shares):
                self._whole.pop(key, None)
                self.split.add(key)

    def calls(self) -> Calls:
        """To note the calls of a run in which uses are told apart."""
        return Calls(self._parts)

    def _share(self, key: int, call: Call | None) -> _Share:
        """Whose a use of a tensor is."""
        if call is None:
            return None
        shares = self._shares[call.part]
        share = shares[call.nth] if call.nth < len(shares) else None
        return self._columns.get(key) if isinstance(share, list) else share

    def add(self, total: Tensor, x: Tensor, grad: Tensor, turn: Turn, heard: Heard | None) -> None:
        """Add the gradient of x to its total, times the factor of whoever owns x or its use."""
        uses = heard.of(x) if heard is not None and id(x) in self.split else []
        for call, part in uses:
            _add(total, part, self._share(id(x), call), turn)
        if not uses:
            whole = None if id(x) in self.split else self._columns.get(id(x))
            _add(total, grad, self._whole.get(id(x)) if whole is None else whole, turn)


def _add(total: Tensor, grad: Tensor, share: _Share, turn: Turn) -> None:
    if not isinstance(share, list):
        total.add_(grad, alpha=turn.head if share is None else turn.route[share])
        return
    widths = [width for width, _ in share]
    pieces = zip(total.split(widths, 1), grad.split(widths, 1), share, strict=True)
    for total_block, grad_block, (_, owner) in pieces:
        total_block.add_(grad_block, alpha=turn.head if owner is None else turn.route[owner])


def _end_of(x: Tensor) -> Edge:
    edge = get_gradient_edge(x)
    return edge.node, edge.output_nr


def _weight_of(layer: nn.Module) -> Tensor | None:
    return layer._parameters.get("weight", vars(layer).get("weight"))


def _tensors_of(part: nn.Module) -> dict[int, Tensor]:
    """Its parameters, which FSDP1 may have made attributes for the time of a call."""
    held = [[*m._parameters.values(), *vars(m).values()] for m in part.modules()]
    return {id(x): x for values in held for x in values if isinstance(x, Tensor)}


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
        owners.split_from_head(linear, inner, _in_order(latent_dims))
    elif adds_up(inner):
        if first_layer(inner) is None:
            owners.own_projections(inner, range(len(latents)))
            for part in projections_of(inner):
                owners.tell_calls(part, _places(part, inner))
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
        parts = [part for fusion in fusions for part in seen.parts_of(fusion)]
        calls = Calls(parts)
        for frame in (x for f in fusions for x in (f, f.head) if x is not None):
            stack.callback(frame.register_forward_pre_hook(seen.enter, prepend=True).remove)
            stack.callback(frame.register_forward_hook(seen.leave).remove)
        for part in {id(part): part for part in parts}.values():
            stack.callback(part.register_forward_pre_hook(seen.note, prepend=True).remove)
        for layer in layers:
            stack.callback(layer.register_forward_hook(seen.note_joined).remove)
        started = torch._C._autograd._get_sequence_nr()
        with calls.noted():
            output = run([*seen.inputs])
        whole = seen.forwarded(output)
    for fusion in fusions:
        first = first_layer(fusion)
        if first is None:
            owners.own_projections(fusion, seen.owners(fusion))
        elif additive_linear(first[0]) is not None:
            owners.own_columns(_weight_of(first[0]), seen.blocks[id(first[0])])
    for part in parts:
        owners.tell_calls(part, seen.shares_of(part, fusions))
    owners.split_uses(uses_in(output, started), calls)
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
        self._frames: list[nn.Module] = []
        self._behind: dict[int, list[set[int] | None]] = {}  # calls of a part; None: another use

    def parts_of(self, fusion: AdditiveFusion) -> list[nn.Module]:
        """The projections, or the layer that they are columns of."""
        first = first_layer(fusion)
        if first is None:
            return projections_of(fusion)
        layer, latent_dims = first
        self.blocks[id(layer)] = [(width, None) for width in latent_dims]
        return [layer]

    def owners(self, fusion: AdditiveFusion) -> list[int | None]:
        """The one modality that all inputs of a projection came from, by its place in a fusion."""
        found = []
        for m, part in enumerate(projections_of(fusion)):
            places = _places(part, fusion)
            behind = [x for x in self._behind.get(id(part), []) if x is not None]
            even = len(behind) % len(places) == 0
            mine = behind[places.index(m) :: len(places)] if even else []
            found.append(_only(set().union(*mine)))
        return found

    def shares_of(self, part: nn.Module, fusions: Sequence[AdditiveFusion]) -> list[_Share]:
        """Whose the calls of a part are."""
        of_places: list[_Share] = [self.blocks.get(id(part))]
        for fusion in (f for f in fusions if first_layer(f) is None):
            owners = self.owners(fusion)
            of_places = [owners[m] for m in _places(part, fusion)] or of_places
        turns = itertools.cycle(of_places)
        return [None if x is None else next(turns) for x in self._behind.get(id(part), [])]

    def enter(self, frame: nn.Module, args: Any) -> None:
        """An additive fusion is called, or its head."""
        self._frames.append(frame)

    def leave(self, frame: nn.Module, args: Any, output: Any) -> None:
        """It returns."""
        self._frames.pop()

    def forwarded(self, output: Tensor) -> nn.Linear | None:
        """The layer over the joined latents whose output this is, as it came."""
        return None if output.grad_fn is None else self._joined.get(output.grad_fn)

    def note(self, part: nn.Module, args: Any) -> None:
        """A part of an additive fusion is called."""
        node = args[0].grad_fn if args and isinstance(args[0], Tensor) else None
        blocks, calls = self.blocks.get(id(part)), self._behind.setdefault(id(part), [])
        if blocks is None:
            behind = self._modalities(node)
            calls.append(behind if self._in_place(part) or _only(behind) is not None else None)
            return
        known = any(x is not None for x in calls)
        found = [_only(self._modalities(n)) for n in _pieces(node)]
        if len(found) != len(blocks):
            found = [None] * len(blocks)
        if not self._in_place(part) and None in found:
            calls.append(None)
            return
        calls.append(set())
        for i, (width, owner) in enumerate(blocks):
            blocks[i] = width, found[i] if owner == found[i] or not known else None

    def _in_place(self, part: nn.Module) -> bool:
        """Whether it is the fusion that calls its part, and not its head or anything else."""
        frame = self._frames[-1] if self._frames else None
        if not isinstance(frame, AdditiveFusion):
            return False
        first = first_layer(frame)
        return part is first[0] if first is not None else bool(_places(part, frame))

    def note_joined(self, layer: nn.Linear, args: Any, output: Tensor) -> None:
        """A layer that may be the whole function was called."""
        node = args[0].grad_fn if args and isinstance(args[0], Tensor) else None
        if output.grad_fn is not None and _pieces(node) == self._given:
            self._joined[output.grad_fn] = layer

    def _modalities(self, node: Node | None) -> set[int]:
        leaves = (getattr(n, "variable", None) for n in nodes_behind(node, set()))
        return {self.players[id(x)] for x in leaves if id(x) in self.players}


def _places(part: nn.Module, fusion: AdditiveFusion) -> list[int]:
    return [m for m, other in enumerate(projections_of(fusion)) if other is part]


def _only(found: set[int]) -> int | None:
    return next(iter(found)) if len(found) == 1 else None


def _pieces(node: Node | None) -> list[Node | None]:
    """Where the pieces of a concatenation come from; nowhere if it is something else."""
    if node is None or not node.name().startswith("CatBackward"):
        return []
    return [piece for piece, _ in node.next_functions]
