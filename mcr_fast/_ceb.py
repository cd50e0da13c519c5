"""L_CEB of `MCRLoss`: how well a small head h(y) predicts the latents."""

import gc
import math
import sys
import warnings

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mcr_fast import functional
from mcr_fast._checks import Backend
from mcr_fast._wrapping import is_unit
from mcr_fast.reference._similarity import accumulation_dtype


def ceb_head(num_classes: int, latent_dims: tuple[int, ...]) -> nn.Module:
    """The h of the specification, section 1.5."""
    width = max(latent_dims)
    return nn.Sequential(
        nn.Linear(num_classes, width, bias=False),
        nn.ReLU(),
        nn.Linear(width, sum(latent_dims), bias=False),
    )


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:  # [N] -> [N, C]
    """1 at each row's class; NaN for a label that is none, which a device is not asked about."""
    labels = labels[:, None]
    rows = (labels == torch.arange(num_classes, device=labels.device)).to(dtype)
    return rows.masked_fill((labels < 0) | (labels >= num_classes), math.nan)


def late_ceb_head(num_classes: int, latent_dims: tuple[int, ...]) -> nn.Module:
    """The head of a term whose weight was 0 when the loss was made."""
    if torch.compiler.is_compiling():
        raise ValueError(
            "ceb_weight was raised from 0, and the term's head cannot be made in compiled code: "
            "set ceb_weight outside of it"
        )
    with torch.inference_mode(False):  # what is made here is trained later
        return ceb_head(num_classes, latent_dims)


def warn_of_late_head() -> None:
    """That nobody trains it, said where ceb_weight is set."""
    warnings.warn(
        "ceb_weight was raised from 0 after MCRLoss was made, so the term's head is new and no "
        "optimizer trains it yet: call optimizer.add_param_group({'params': "
        "mcr.ceb_head.parameters()}), or make MCRLoss with a ceb_weight above 0 and lower it until "
        "the term is wanted",
        UserWarning,
        stacklevel=3,
    )


def settled(head: nn.Module, like: Tensor) -> bool:
    """Put a late head beside the latents, which nobody knew when it was made; True if it is."""
    if torch.compiler.is_compiling():  # where no parameter can move
        if next(head.parameters()).device != like.device:
            raise ValueError(
                f"ceb_weight was raised from 0, and the term's head is not on {like.device} yet: "
                "move it, mcr.ceb_head.to(...), or call the loss once outside of compiled code"
            )
        return False
    with torch.inference_mode(False):
        head.to(like.device, accumulation_dtype(like.dtype))
    return True


def drift_looked_for(head: nn.Module) -> bool:
    """Warn if every process trains a head of its own, with nobody to average its gradients.

    Whether that could be seen: not before processes know of each other.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    world = torch.distributed.get_world_size()
    trained = [p for p in head.parameters() if p.requires_grad]
    if world > 1 and trained and not _is_averaged(head, trained):
        warnings.warn(
            f"MCRLoss: each of the {world} processes trains its own head of L_CEB, since no "
            "DistributedDataParallel or FSDP holds mcr.ceb_head, and they drift apart. Make "
            "MCRLoss a submodule of the model that is wrapped, or wrap the head, mcr.ceb_head = "
            "DistributedDataParallel(mcr.ceb_head), unless you average its gradients yourself. "
            "This warning comes once.",
            UserWarning,
            stacklevel=7,
        )
    return True


def _is_averaged(head: nn.Module, trained: list[nn.Parameter]) -> bool:
    if "deepspeed" in sys.modules:  # whose engines leave no mark on a parameter
        return True
    if any(getattr(m, "_is_fsdp_managed_module", False) for m in head.modules()):
        return True
    if any(type(p) is not nn.Parameter or p._post_accumulate_grad_hooks for p in trained):
        return True  # a DTensor; or somebody takes the gradients
    # Nothing on a parameter tells of DDP, and the loss may be called outside of its forward.
    known: set[int] = set()
    for x in gc.get_objects():
        if issubclass(type(x), DistributedDataParallel):
            known.update(map(id, x.__dict__.get("_module_parameters", x.parameters())))
        elif issubclass(type(x), nn.Module) and is_unit(x):
            known.update(map(id, x.parameters()))
    return all(id(p) in known for p in trained)


def evaluate_ceb(
    head: nn.Module,
    latents: list[Tensor],  # M tensors [N, D_m]
    seen: Tensor,  # [N, C], detached logits; or [N], labels to make one-hot
    num_classes: int,
    present: Tensor | None,  # [N, M]
    backend: Backend | None,
) -> Tensor:  # []
    """The loss; its gradient flows to the head and to the latents."""
    weight = next(head.parameters())
    if seen.ndim == 1:
        seen = one_hot(seen, num_classes, weight.dtype)
    reconstruction = head(seen.to(weight.dtype))
    if present is None:
        return functional.reconstruction_loss(latents, reconstruction, backend=backend)
    # both sides become 0 where a modality is missing, and the mean is over what is left
    here = [present[:, m : m + 1].expand_as(z) for m, z in enumerate(latents)]
    kept = torch.cat(here, dim=1)
    latents = [torch.where(k, z, z.new_zeros(())) for k, z in zip(here, latents, strict=True)]
    reconstruction = torch.where(kept, reconstruction, reconstruction.new_zeros(()))
    loss = functional.reconstruction_loss(latents, reconstruction, backend=backend)
    # a quotient of whole numbers would be float32, whatever the loss is
    return loss * (kept.numel() / kept.sum().clamp(min=1).to(loss.dtype))
