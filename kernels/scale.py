"""Scales a unit gradient by the upstream one and casts it; or takes the one computed anew."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels.config import SCALE_BLOCK


@triton.jit
def all_equal(upstream_ptr, count):
    """Whether the upstream gradients are all the same number."""
    first = tl.load(upstream_ptr)
    different = 0
    for s in range(count):
        different += (tl.load(upstream_ptr + s) != first).to(tl.int32)
    return different == 0


@triton.jit
def _scale_or_take_kernel(
    unit_ptr,  # [size]
    again_ptr,  # [size] or None
    upstream_ptr,  # [count]
    out_ptr,  # [size]
    size,
    count,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    unit = tl.load(unit_ptr + at, mask=mask, other=0.0)
    result = unit * tl.load(upstream_ptr).to(tl.float32)
    if again_ptr is not None:  # noqa: SIM102 (a kernel evaluates both sides of `and`)
        if not all_equal(upstream_ptr, count):
            result = tl.load(again_ptr + at, mask=mask, other=0.0)
    tl.store(out_ptr + at, result.to(out_ptr.dtype.element_ty), mask=mask)


def scale_or_take(
    unit_grad: Tensor,  # any shape
    again: Tensor | None,  # of the same shape
    upstream: Tensor,  # [count]
    dtype: torch.dtype,
) -> Tensor:  # of the same shape
    """upstream[0] * unit_grad, or `again` where the upstream gradients differ."""
    unit_grad, upstream = unit_grad.contiguous(), upstream.contiguous()
    out = torch.empty_like(unit_grad, dtype=dtype)
    size = unit_grad.numel()
    if upstream.numel() == 0:
        return out.zero_()
    if size:
        _scale_or_take_kernel[(triton.cdiv(size, SCALE_BLOCK),)](
            unit_ptr=unit_grad,
            again_ptr=again,
            upstream_ptr=upstream,
            out_ptr=out,
            size=size,
            count=upstream.numel(),
            BLOCK=SCALE_BLOCK,
            num_warps=4,
        )
    return out
