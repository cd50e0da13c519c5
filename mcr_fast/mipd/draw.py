"""What takes the place of the latents of a subset: donors' rows, zeros, or noise on top."""

import torch
from torch import Tensor

from mcr_fast._checkpointing import generator_of_step
from mcr_fast._fixed import Fixed
from mcr_fast.mipd.request import Request
from mcr_fast.reference._similarity import accumulation_dtype
from mcr_fast.sampling import (
    CyclicPermutations,
    Scheme,
    draw_permutations,
    sample_permutations,
)

_OF_RANKS = 1 << 16  # draws of `Fixed` from here on are the orders of ranks


def draw_donors(
    latents: list[Tensor],  # M tensors [N, ..., D_m]
    subsets: tuple[int, ...],
    perturbation: str,
    num_permutations: int | str,
    scheme: Scheme,
    shared_donor: bool,
    generator: torch.Generator | None,
    rank: int,
    fixed: bool,  # the same donors for the same sizes, unless there is a generator
) -> tuple[Tensor | None, Tensor | None]:
    """(order, donors) as the ops take them; of each rank its own, from equal generators."""
    num_modalities, num_rows, device = len(latents), latents[0].shape[0], latents[0].device
    if perturbation != "permute":
        # every row replaces itself: there is no donor to miss or to exclude
        count = 1 if perturbation == "zero" else _draws_of_noise(num_permutations)
        rows = torch.arange(num_rows, device=device)
        return None, rows.expand(1, count if num_rows > 1 else 0, num_rows)
    if num_permutations == "all" or num_rows <= 1:
        return None, None
    count = int(num_permutations)
    # with one modality in every subset, own and shared donors are the same thing
    own = not shared_donor and any(subset & (subset - 1) for subset in subsets)
    if scheme == "cyclic":
        own = own and num_rows > num_modalities
        if count >= num_rows - 1 and not own:
            return None, None
        count = min(count, num_rows - 1)
    sets = num_modalities if own else None
    if fixed and generator is None:
        sample = draw_permutations(Fixed(device), count, num_rows, scheme, sets)
    else:
        sample = sample_permutations(
            count,
            num_rows,
            scheme=scheme,
            num_modalities=sets,
            generator=generator,
            device=device,
        )
    if isinstance(sample, CyclicPermutations):
        order = of_rank(sample.order, 0, rank)
        return order, sample.shifts if own else sample.shifts[None]
    table = of_rank(sample, -1, rank)
    return None, table if own else table[None]


def of_rank(drawn: Tensor, dim: int, rank: int) -> Tensor:
    """What was drawn, in an order along `dim` that is each rank's own.

    Random permutations and independent draws are as random in any fixed order. So no generator
    moves differently for it, and a recomputation finds the same.
    """
    if rank == 0:
        return drawn
    order = Fixed(drawn.device, _OF_RANKS + rank).permutation(drawn.shape[dim])
    return drawn.index_select(dim, order)


def _draws_of_noise(num_permutations: int | str) -> int:
    if isinstance(num_permutations, str):
        raise ValueError(
            f"num_permutations must be a number for perturbation='noise', got {num_permutations!r}"
        )
    return num_permutations


def draw_noise(
    latents: list[Tensor],
    count: int,
    generator: torch.Generator | None,
    rank: int = 0,
    fixed: bool = False,
) -> list[Tensor]:  # M tensors [K, N, ...]
    """Normal noise with every latent element's standard deviation over the batch."""
    generator, drawn = generator_of_step(generator), []
    for m, z in enumerate(latents):
        if fixed and generator is None:
            normal = Fixed(z.device, m).normal(count, *z.shape).to(z.dtype)
        else:
            on = z.device if generator is None else generator.device
            normal = torch.randn(count, *z.shape, generator=generator, device=on, dtype=z.dtype)
        normal = of_rank(normal.flatten(0, 1), 0, rank).view_as(normal)
        x = z.detach().to(accumulation_dtype(z.dtype))
        deviation = (x - x.mean(0)).square().mean(0).sqrt()
        drawn.append((normal.to(z.device) * deviation).to(z.dtype))
    return drawn


def replaced_latents(request: Request) -> list[Tensor]:  # M tensors [K, N, ...]
    """Zeros, or the latents with noise."""
    count, latents = request.num_draws(), request.latents
    if request.perturbation == "zero":
        return [torch.zeros_like(z)[None].expand(count, *z.shape) for z in latents]
    noise = draw_noise(latents, count, request.generator, request.rank, request.fixed)
    return [z + added for z, added in zip(latents, noise, strict=True)]
