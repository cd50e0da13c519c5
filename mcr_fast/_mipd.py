"""L_MIPD of latents and a fusion: draws the donors and picks the way the fusion is evaluated."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mcr_fast import _checks as checks
from mcr_fast._chunks import Chunk, Rows
from mcr_fast._sources import CallableSource, HiddenSource, Source
from mcr_fast.fusion import (
    Additive,
    AdditiveFusion,
    LinearColumns,
    as_additive,
    check_widths,
    finish,
)
from mcr_fast.ops._linear import can_fuse, linear_permuted_divergence
from mcr_fast.ops.permuted_divergence import permuted_divergence
from mcr_fast.perturbation import Game, perturbed_divergences
from mcr_fast.sampling import CyclicPermutations, sample_permutations

Fusion = AdditiveFusion | nn.Module | Callable[[list[Tensor]], Tensor]


class Draw(NamedTuple):
    """How the perturbations are drawn."""

    perturbation: str
    num_permutations: int | str
    scheme: str
    shared_donor: bool
    generator: torch.Generator | None


def draw_donors(
    draw: Draw, subsets: tuple[int, ...], num_modalities: int, num_rows: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """(order, donors) as the ops take them."""
    if draw.perturbation != "permute":
        # every row replaces itself: there is no donor to miss or to exclude
        count = 1 if draw.perturbation == "zero" else int(draw.num_permutations)
        rows = torch.arange(num_rows, device=device)
        return None, rows.expand(1, count if num_rows > 1 else 0, num_rows)
    if draw.num_permutations == "all" or num_rows <= 1:
        return None, None
    count = int(draw.num_permutations)
    # with one modality in every subset, own and shared donors are the same thing
    own = not draw.shared_donor and any(mask & (mask - 1) for mask in subsets)
    if draw.scheme == "cyclic":
        own = own and num_rows > num_modalities
        if count >= num_rows - 1 and not own:
            return None, None
        count = min(count, num_rows - 1)
    sample = sample_permutations(
        count,
        num_rows,
        scheme="cyclic" if draw.scheme == "cyclic" else "uniform",
        num_modalities=num_modalities if own else None,
        generator=draw.generator,
        device=device,
    )
    if isinstance(sample, CyclicPermutations):
        return sample.order, sample.shifts if own else sample.shifts[None]
    return None, sample if own else sample[None]


def mipd(
    latents: list[Tensor],  # M tensors [N, ..., D_m]
    fusion: Fusion,
    logits: Tensor | None,  # [N, C]
    num_classes: int,
    rows: Rows,
    game: Game,
    draw: Draw,
) -> tuple[Tensor, Tensor, Tensor]:  # [], [S], [N, C]
    """L_MIPD, the divergences without gradient, and the clean logits."""
    latent_dims = tuple(z.shape[-1] for z in latents)
    additive = as_additive(fusion, latent_dims)
    if additive is None:
        if logits is None:
            logits = run_fusion(fusion, latents)
        checks.fusion_output(logits, latents[0].shape[0], num_classes)
        source: Source = CallableSource(_callable(fusion), latents, _replace(latents, draw, rows))
    else:
        fused = _fused(additive, latents, rows, game, draw)
        contributions = fused[1] if fused else additive.contributions(latents)
        if additive.head is None:
            checks.fusion_output(contributions[0], latents[0].shape[0], num_classes)
        if logits is None:
            logits = finish(additive, contributions)
            checks.fusion_output(logits, latents[0].shape[0], num_classes)
        if fused or (additive.head is None and draw.perturbation == "permute"):
            divergences = fused[0] if fused else _linear(contributions, additive.bias, rows, game)
            return -divergences.sum(), divergences.detach(), logits
        replacements = _project_replaced(additive, latents, draw, rows)
        source = HiddenSource(additive, contributions, replacements, game.backend)
    value, divergences = perturbed_divergences(source, logits, rows, len(latents), game)
    return value, divergences, logits


def run_fusion(fusion: Fusion, latents: Sequence[Tensor]) -> Tensor:
    """The clean logits."""
    if isinstance(fusion, nn.Linear):
        return fusion(torch.cat(tuple(latents), dim=-1))
    return _callable(fusion)(list(latents))


def _callable(fusion: Fusion) -> Callable[[list[Tensor]], Tensor]:
    return fusion


def _fused(
    additive: Additive, latents: Sequence[Tensor], rows: Rows, game: Game, draw: Draw
) -> tuple[Tensor, Tensor] | None:  # [S], [M, N, C]
    """The divergences of a linear fusion with its contributions, if one op serves both."""
    if not isinstance(additive, LinearColumns) or additive.head is not None:
        return None
    if draw.perturbation != "permute" or not can_fuse(latents, additive.weight, game.backend):
        return None
    check_widths(latents, additive.latent_dims)
    options = (game.subsets, game.strategy, game.clean_path, game.divergence, rows.exclude)
    masks = (rows.codes, rows.present, rows.sample_weight)
    return linear_permuted_divergence(
        latents, additive.weight, additive.bias, rows.order, rows.donors, *masks, *options
    )


def _linear(contributions: Tensor, bias: Tensor | None, rows: Rows, game: Game) -> Tensor:  # [S]
    return permuted_divergence(
        contributions,
        bias,
        rows.order,
        rows.donors,
        rows.codes,
        rows.present,
        rows.sample_weight,
        subsets=game.subsets,
        strategy=game.strategy,
        clean_path=game.clean_path,
        divergence=game.divergence,
        exclude=rows.exclude,
        backend=game.backend,
    )


def _noise(
    latents: Sequence[Tensor], count: int, draw: Draw
) -> list[Tensor]:  # M tensors [K, N, ...]
    """Normal noise with every latent element's standard deviation over the batch."""
    drawn = []
    for z in latents:
        on = z.device if draw.generator is None else draw.generator.device
        normal = torch.randn(count, *z.shape, generator=draw.generator, device=on, dtype=z.dtype)
        centred = z.detach() - z.detach().mean(0)
        drawn.append(normal.to(z.device) * centred.square().mean(0).sqrt())
    return drawn


def _replace(
    latents: Sequence[Tensor], draw: Draw, rows: Rows
) -> Callable[[Tensor, int, Chunk], Tensor] | None:
    """What a callable fusion's perturbed latents are, other than donors' rows."""
    if draw.perturbation == "permute":
        return None
    if draw.perturbation == "zero":
        return lambda x, modality, chunk: torch.zeros_like(x)
    noise = _noise(latents, _count(rows), draw)

    def add_noise(x: Tensor, modality: int, chunk: Chunk) -> Tensor:
        part = noise[modality][chunk.first : chunk.last, chunk.start : chunk.stop]
        return x + part.flatten(0, 1)

    return add_noise


def _project_replaced(
    additive: Additive, latents: Sequence[Tensor], draw: Draw, rows: Rows
) -> list[Tensor] | None:  # M tensors [K, N, H]
    """An additive fusion's perturbed contributions, other than donors'; they carry a graph.

    So the gradient of one reaches its encoder and its projection with one factor.
    """
    if draw.perturbation == "permute":
        return None
    count = _count(rows)
    if draw.perturbation == "zero":
        replaced = [torch.zeros_like(z)[None].expand(count, *z.shape) for z in latents]
    else:
        noise = _noise(latents, count, draw)
        replaced = [z + noise_m for z, noise_m in zip(latents, noise, strict=True)]
    return [
        additive.project(m, x.flatten(0, 1)).unflatten(0, (count, len(latents[m])))
        for m, x in enumerate(replaced)
    ]


def _count(rows: Rows) -> int:
    assert rows.donors is not None, "perturbations without donors have a table of identities"
    return rows.donors.shape[1]
