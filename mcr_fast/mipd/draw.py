"""What takes the place of the latents of a subset: donors' rows, zeros, or noise on top."""

import torch
from torch import Tensor

from mcr_fast._checkpointing import generator_of_step
from mcr_fast.mipd.request import Request
from mcr_fast.reference._similarity import accumulation_dtype
from mcr_fast.sampling import CyclicPermutations, Scheme, sample_permutations


def draw_donors(
    latents: list[Tensor],  # M tensors [N, ..., D_m]
    subsets: tuple[int, ...],
    perturbation: str,
    num_permutations: int | str,
    scheme: Scheme,
    shared_donor: bool,
    generator: torch.Generator | None,
) -> tuple[Tensor | None, Tensor | None]:
    """(order, donors) as the ops take them."""
    num_modalities, num_rows, device = len(latents), latents[0].shape[0], latents[0].device
    if perturbation != "permute":
        # every row replaces itself: there is no donor to miss or to exclude
        count = 1 if perturbation == "zero" else int(num_permutations)
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
    sample = sample_permutations(
        count,
        num_rows,
        scheme=scheme,
        num_modalities=num_modalities if own else None,
        generator=generator,
        device=device,
    )
    if isinstance(sample, CyclicPermutations):
        return sample.order, sample.shifts if own else sample.shifts[None]
    return None, sample if own else sample[None]


def draw_noise(
    latents: list[Tensor], count: int, generator: torch.Generator | None
) -> list[Tensor]:  # M tensors [K, N, ...]
    """Normal noise with every latent element's standard deviation over the batch."""
    generator, drawn = generator_of_step(generator), []
    for z in latents:
        on = z.device if generator is None else generator.device
        normal = torch.randn(count, *z.shape, generator=generator, device=on, dtype=z.dtype)
        x = z.detach().to(accumulation_dtype(z.dtype))
        deviation = (x - x.mean(0)).square().mean(0).sqrt()
        drawn.append((normal.to(z.device) * deviation).to(z.dtype))
    return drawn


def replaced_latents(request: Request) -> list[Tensor]:  # M tensors [K, N, ...]
    """Zeros, or the latents with noise."""
    count, latents = request.num_draws(), request.latents
    if request.perturbation == "zero":
        return [torch.zeros_like(z)[None].expand(count, *z.shape) for z in latents]
    noise = draw_noise(latents, count, request.generator)
    return [z + added for z, added in zip(latents, noise, strict=True)]
