"""Whether a fusion draws random numbers where the permutation alone should make the difference."""

import torch
from torch import Tensor

from mcr_fast.ops._modes import recorded


def random_state(device: torch.device) -> Tensor | int | None:
    """Where torch's random numbers on a device stand; waits for nothing.

    None where it cannot be said: on other devices, and while something records the operations.
    """
    if recorded():
        return None
    if device.type == "cpu":
        return torch.get_rng_state()
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        index = torch.cuda.current_device() if device.index is None else device.index
        return torch.cuda.default_generators[index].get_offset()
    return None


def moved(before: Tensor | int | None, device: torch.device) -> bool:
    """Whether random numbers were drawn since, by whomever: other threads share them."""
    after = random_state(device)
    if isinstance(before, Tensor) and isinstance(after, Tensor):
        return not torch.equal(before, after)
    return before != after


def same_logits(first: Tensor, again: Tensor) -> None:
    """Raise if two runs on the same rows differ; compared only where random numbers were drawn."""
    if not torch.allclose(first.detach(), again.detach(), rtol=0.0, atol=0.0, equal_nan=True):
        raise ValueError(
            "fusion draws random numbers in evaluation mode too, so that its perturbed logits "
            "would differ from the clean ones by more than the permutation: give functional "
            "dropout training=module.training, draw noise outside of the fusion, or take "
            "fusion_mode='own'"
        )
