"""What a fuzz case's value and gradients are, by plain autograd in float64.

`oracle.Oracle` plays, with all of a subset's pairs in one run of the fusion (`paths`); nothing of
the engine is used. The players are cut from what they were computed from. `truth` puts the other
terms beside it and goes back to the leaves once, so that gradient hooks see one gradient.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from fuzz_cases import World, in_dtype
from fuzz_layers import pool
from inputs import generator
from oracle import DEFINITIONS, Oracle, subsets_of
from torch import Tensor, nn

import mcr_fast
from mcr_fast.modules import MCROutput
from mcr_fast.reference import nt_xent, sup_con


def pair_weights(
    table: Tensor,  # [M, K, N]
    subset: Sequence[int],
    exclude: str | None,
    labels: Tensor | None,
    present: Tensor | None,
    sample_weight: Tensor | None,
) -> Tensor:  # [K, N]
    kept = torch.ones(table.shape[1:], dtype=torch.bool)
    for m in subset:
        if exclude == "self":
            kept &= table[m] != torch.arange(table.shape[2])
        if exclude == "same_label":
            kept &= labels[table[m]] != labels
        if present is not None:
            kept &= present[:, m] & present[:, m][table[m]]
    return kept.double() if sample_weight is None else kept * sample_weight


def paths(
    fusion: Callable[[list[Tensor]], Tensor],
    latents: Sequence[Tensor],
    table: Tensor,  # [K, N] or [M, K, N]
    subset: Sequence[int],
    *,
    divergence: str,
    replace: Callable[[Tensor, int], Tensor] | None,  # [N, ...] -> [K, N, ...]
    **which,
) -> tuple[Tensor, Tensor]:  # [], []
    """D_S with the clean logits detached, and D_S with the perturbed logits detached."""
    table = table.expand(len(latents), *table.shape[-2:])
    weight = pair_weights(table, subset, **which).to(latents[0].dtype)
    clean = fusion([z.clone() for z in latents])  # it may work in place
    if not weight.sum() > 0:
        return (clean.sum() * 0,) * 2
    rows = [
        z.expand(len(weight), *z.shape)
        if m not in subset
        else z[table[m]]
        if replace is None
        else replace(z, m)
        for m, z in enumerate(latents)
    ]
    perturbed = fusion([x.flatten(0, 1).clone() for x in rows]).unflatten(0, weight.shape)

    def mean(z: Tensor, w: Tensor) -> Tensor:
        # a pair that does not count adds nothing, whatever it holds
        return (
            torch.where(weight > 0, DEFINITIONS[divergence](z, w), 0) * weight / weight.sum()
        ).sum()

    return mean(clean.detach(), perturbed), mean(clean, perturbed.detach())


# The cases of the fuzz


@dataclass
class Parts:
    """A fusion as the oracle plays with it: leaves, and what they stand for in the step's graph."""

    fusion: Callable[[list[Tensor]], Tensor]
    players: list[Tensor]  # in the graph
    owned: list[tuple[Tensor, int | None]]  # leaves
    attached: list[Tensor]  # what each of `owned` was cut from


def donors(case, source: torch.Generator | None) -> Tensor:
    """The table that a step draws, or was given; and noise comes from the same source."""
    options, n, m = case.options, case.sizes.num_rows, len(case.sizes.dims)
    if options["perturbation"] != "permute":
        count = 1 if options["perturbation"] == "zero" else options["num_permutations"]
        return torch.arange(n).expand(count if n > 1 else 0, n)
    given = case.permutations
    if given is not None:
        return given if isinstance(given, Tensor) else given.index()
    exhaustive = (torch.arange(n) + torch.arange(1, max(n, 1))[:, None]) % max(n, 1)
    count = options["num_permutations"]
    if count == "all" or n <= 1 or options["mipd_weight"] == 0:
        return exhaustive
    own = not options["shared_donor"] and options["subsets"] == "all" and m > 2
    if options["scheme"] == "cyclic":
        own = own and n > m
        if count >= n - 1 and not own:
            return exhaustive
        count = min(count, n - 1)
    sample = mcr_fast.sample_permutations(
        count, n, scheme=options["scheme"], num_modalities=m if own else None, generator=source
    )
    return sample if isinstance(sample, Tensor) else sample.index()


def noise(
    case, latents: Sequence[Tensor], dtype: torch.dtype, source: torch.Generator | None, count: int
) -> list[Tensor]:  # M tensors [K, N, ...]
    """Drawn in the dtype of the step, which a generator's numbers depend on."""
    drawn = []
    for z in latents:
        normal = torch.randn(count, *z.shape, generator=source, dtype=dtype).to(z.dtype)
        x = z.detach()
        drawn.append(normal * (x - x.mean(0)).square().mean(0).sqrt())
    return drawn


def parts_of(world: World, latents: list[Tensor]) -> tuple[Tensor, Parts]:
    """The logits of the clean call, in the fusion's own mode, and the game in evaluation mode."""
    drawn, net = world.drawn, world.net
    own = [z.clone() for z in latents]
    if drawn.way == "additive" and world.case.options["perturbation"] == "permute":
        contributions = [p(z) for p, z in zip(net.projections, own, strict=True)]
        hidden = _hidden(contributions, net.bias)
        logits = hidden.clone() if net.head is None else net.head(hidden.clone())
        net.eval()
        shared = [] if net.head is None else list(net.head.parameters())
        shared += [net.bias] if isinstance(net.bias, nn.Parameter) else []

        def finish(parts: list[Tensor]) -> Tensor:
            hidden = _hidden(parts, net.bias)
            return hidden if net.head is None else net.head(hidden)

        return logits, Parts(finish, contributions, [(p, None) for p in shared], shared)
    logits = drawn.apply(own)
    net.eval()
    if drawn.way == "columns":
        return logits, _columns(world, latents)
    named = [(name, p) for name, p in net.named_parameters()]
    owned = [(p, drawn.owner(name)) for name, p in named]
    outside = [p for m in (world.text, world.encoders) if m is not None for p in m.parameters()]
    if world.text is not None:
        outside.append(world.note)
    owned += [(p, None) for p in outside]
    return logits, Parts(drawn.apply, latents, owned, [p for p, _ in owned])


def _hidden(contributions: Sequence[Tensor], bias: Tensor | None) -> Tensor:
    hidden = torch.stack(list(contributions)).sum(0)
    return hidden if bias is None else hidden + bias


def _columns(world: World, latents: list[Tensor]) -> Parts:
    """The columns of the weight as the layer computes it are tensors of their own."""
    linear, head = world.drawn.linear, world.drawn.head
    linear(torch.cat([z.detach() for z in latents], -1))  # old normalisations set the weight so
    columns = linear.weight.split(world.case.sizes.dims, 1)
    blocks = [c.detach().clone().requires_grad_(c.requires_grad) for c in columns]
    hooked = "hooked linear" in world.words

    def fusion(rows: list[Tensor]) -> Tensor:
        x, weight = torch.cat(rows, -1), torch.cat(blocks, 1)
        if hooked:
            hidden = torch.func.functional_call(linear, {"weight": weight}, (x,))
        else:
            hidden = F.linear(x, weight, linear.bias)
        return hidden if head is None else head(hidden)

    shared = [] if head is None else list(head.parameters())
    shared += [] if linear.bias is None else [linear.bias]
    owned = [*((b, m) for m, b in enumerate(blocks)), *((p, None) for p in shared)]
    return Parts(fusion, latents, owned, [*columns, *shared])


def truth(world: World, drawn_in: torch.dtype, source: torch.Generator | None) -> MCROutput:
    """The outputs; the gradients are left in the world's leaves, unless there are none."""
    case, options = world.case, world.case.options
    counted = [
        world.get_submodule(hook.name).register_forward_hook(hook.count_calls)
        for hook in world.hooks
        if hook.kind == "module"
    ]
    latents = world.encode()
    dtype = latents[0].dtype
    table = donors(case, source)
    replace = None
    if options["perturbation"] == "zero":
        replace = lambda z, m: torch.zeros_like(z)[None]  # noqa: E731
    elif options["perturbation"] == "noise" and options["mipd_weight"] != 0:
        added = noise(case, latents, drawn_in, source, len(table))
        replace = lambda z, m: z + added[m]  # noqa: E731
    logits, parts = parts_of(world, latents)
    for handle in counted:
        handle.remove()
    mipd = logits.new_zeros(())
    divergences = logits.new_zeros(len(subsets_of(options["subsets"], len(latents))))
    if options["mipd_weight"] != 0:
        mipd, divergences = _play(world, parts, table, replace)
    contrastive, ceb = _contrastive(world, latents), _ceb(world, latents, logits)
    loss = options["mipd_weight"] * mipd + options["contrastive_weight"] * contrastive
    loss = loss + options["ceb_weight"] * ceb
    single = divergences[: len(latents)]
    share = single / single.sum() if single.sum() > 0 else torch.full_like(single, 1 / len(single))
    return MCROutput(loss.to(dtype), mipd, contrastive, ceb, logits, divergences, share)


def _play(world: World, parts: Parts, table: Tensor, replace) -> tuple[Tensor, Tensor]:
    """The term with its routed gradient, and the divergences."""
    case, options = world.case, world.case.options
    leaves = [x.detach().clone().requires_grad_(x.requires_grad) for x in parts.players]
    data = in_dtype(case, parts.players[0].dtype)
    game = Oracle(
        parts.fusion,
        leaves,
        parts.owned,
        table,
        options["subsets"],
        paths=paths,
        divergence=options["divergence"],
        replace=replace,
        exclude=options["exclude"] if options["perturbation"] == "permute" else None,
        labels=case.labels,
        **data,
    )
    value = -game.divergences().sum()
    grads = game.gradients(options["strategy"], options["clean_path"])
    attached = itertools.chain(parts.players, parts.attached)
    attached = [x for x in attached if x.requires_grad]
    # a value whose gradient is the routed one
    linear = [(x * g).sum() for x, g in zip(attached, grads, strict=True)]
    return sum((term - term.detach() for term in linear), value), game.divergences()


def _contrastive(world: World, latents: list[Tensor]) -> Tensor:
    case, options = world.case, world.case.options
    if options["contrastive_weight"] == 0:
        return latents[0].new_zeros(())
    n, m = case.sizes.num_rows, len(latents)
    labels = torch.arange(n) if case.labels is None else case.labels
    reference = {
        "nt_xent": nt_xent.nt_xent_reference,
        "sup_con": sup_con.sup_con_reference,
    }[options["contrastive"]]
    present = case.data["present"]
    return reference(
        torch.cat(list(world.embeddings) or [pool(z) for z in latents]),
        labels.repeat(m),
        None if present is None else present.T.reshape(-1),
        options.get("temperature", 0.5),
    )


def _ceb(world: World, latents: list[Tensor], logits: Tensor) -> Tensor:
    case, options = world.case, world.case.options
    if options["ceb_weight"] == 0:
        return latents[0].new_zeros(())
    seen = logits.detach()
    if options["ceb_source"] == "labels":
        seen = (case.labels[:, None] == torch.arange(case.sizes.classes)).to(logits.dtype)
    difference = world.mcr.ceb_head(seen) - torch.cat([pool(z) for z in latents], 1)
    present = case.data["present"]
    if present is None:
        return difference.square().sum() / max(difference.numel(), 1)
    kept = present.repeat_interleave(torch.tensor(case.sizes.dims), 1)
    return torch.where(kept, difference, 0).square().sum() / kept.sum().clamp(min=1)


def source_of(case) -> torch.Generator | None:
    """A generator of the step's own."""
    return generator(case.seed + 2) if case.own_generator else None
