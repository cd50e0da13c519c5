"""What the CUDA kernels do not take; the reference does."""

import torch
from torch import Tensor

MAX_CUDA_CLASSES = 65536


def beyond_cuda(logits: Tensor) -> str | None:  # [..., C]
    """What a CUDA kernel takes instead of these logits, None if it takes them."""
    if logits.device.type != "cuda":
        return None
    if logits.dtype == torch.float64:
        return "float32, bfloat16 and float16, got float64"
    if logits.shape[-1] > MAX_CUDA_CLASSES:
        return f"at most {MAX_CUDA_CLASSES} classes, got {logits.shape[-1]}"
    return None
