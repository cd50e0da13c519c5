"""Scales unit gradients by the upstream one and casts them; or takes those computed anew."""

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
def upstream_factor(
    upstream_ptr,  # []
    weight_ptr,  # [], of a mean; or None
):
    """The upstream gradient; that of a mean is divided by its weight, and is 0 where that is."""
    factor = tl.load(upstream_ptr).to(tl.float32)
    if weight_ptr is not None:
        weight = tl.load(weight_ptr)
        factor = tl.where(weight == 0.0, 0.0, tl.div_rn(factor, weight))
    return factor


@triton.jit
def scale_block(
    unit_ptr, again_ptr, upstream_ptr, weight_ptr, out_ptr, block, size, count, BLOCK: tl.constexpr
):
    """One block of a unit gradient scaled; or of `again`, where the upstream ones differ."""
    at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    unit = tl.load(unit_ptr + at, mask=mask, other=0.0)
    result = unit * upstream_factor(upstream_ptr, weight_ptr)
    if again_ptr is not None:  # noqa: SIM102 (a kernel evaluates both sides of `and`)
        if not all_equal(upstream_ptr, count):
            result = tl.load(again_ptr + at, mask=mask, other=0.0)
    tl.store(out_ptr + at, result.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _scale_or_take_kernel(
    first_ptr,  # [first_size]
    second_ptr,  # [second_size]
    first_again_ptr,  # as first_ptr, or None
    second_again_ptr,  # as second_ptr, or None
    upstream_ptr,  # [count]
    weight_ptr,  # [], of a mean; or None
    first_out_ptr,  # as first_ptr
    second_out_ptr,  # as second_ptr
    first_size,
    second_size,
    count,
    BLOCK: tl.constexpr,
):
    first_blocks = tl.cdiv(first_size, BLOCK)
    block = tl.program_id(0)
    if block < first_blocks:
        scale_block(
            first_ptr, first_again_ptr, upstream_ptr, weight_ptr, first_out_ptr,
            block, first_size, count, BLOCK,
        )  # fmt: skip
    else:
        scale_block(
            second_ptr, second_again_ptr, upstream_ptr, weight_ptr, second_out_ptr,
            block - first_blocks, second_size, count, BLOCK,
        )  # fmt: skip


def scale_or_take(
    unit_grads: tuple[Tensor, Tensor],  # any shapes
    again: tuple[Tensor, Tensor] | None,  # of the same shapes
    upstream: Tensor,  # [count]
    dtypes: tuple[torch.dtype, torch.dtype],
    weight: Tensor | None = None,  # []
) -> tuple[Tensor, Tensor]:  # of the same shapes
    """upstream[0] * both unit gradients in one launch, or `again` if the upstream ones differ.

    The upstream gradient of a mean is divided by its `weight`, and is 0 where that is.
    """
    first, second = (unit.contiguous() for unit in unit_grads)
    outs = torch.empty_like(first, dtype=dtypes[0]), torch.empty_like(second, dtype=dtypes[1])
    if upstream.numel() == 0:
        return outs[0].zero_(), outs[1].zero_()
    blocks = sum(triton.cdiv(unit.numel(), SCALE_BLOCK) for unit in (first, second))
    if blocks:
        _scale_or_take_kernel[(blocks,)](
            first_ptr=first,
            second_ptr=second,
            first_again_ptr=None if again is None else again[0],
            second_again_ptr=None if again is None else again[1],
            upstream_ptr=upstream.contiguous(),
            weight_ptr=weight,
            first_out_ptr=outs[0],
            second_out_ptr=outs[1],
            first_size=first.numel(),
            second_size=second.numel(),
            count=upstream.numel(),
            BLOCK=SCALE_BLOCK,
            num_warps=4,
        )
    return outs
