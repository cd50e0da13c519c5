"""The rows of permuted_divergence before its kernels read them.

For the divergences of probabilities: in float32, in the order of positions, and no number further
from 0 than FARTHEST. For the softmax each row is taken less its largest: the softmax does not feel
what all classes of a contribution have in common, and gone it costs no digits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast._names import OF_SOFTMAX
from mcr_fast.kernels.divergence import FARTHEST, saturated


@triton.jit
def _lay_out_kernel(
    x_ptr,  # [M, N, C]
    order_ptr,  # [N] or None
    out_ptr,  # [M, N, C]
    num_rows,
    num_classes,
    CENTERED: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    to = tl.program_id(0).to(tl.int64)
    m = to // num_rows
    row = to % num_rows
    if order_ptr is not None:
        row = tl.load(order_ptr + row)
    from_ptr = x_ptr + (m * num_rows + row) * num_classes
    columns = tl.arange(0, BLOCK_C)
    top = tl.full([BLOCK_C], -float("inf"), tl.float32)
    if CENTERED:
        for first in range(0, num_classes, BLOCK_C):
            c = first + columns
            x = tl.load(from_ptr + c, mask=c < num_classes, other=-float("inf")).to(tl.float32)
            top = tl.maximum(top, x)
    largest = tl.max(top, 0)
    for first in range(0, num_classes, BLOCK_C):
        c = first + columns
        x = tl.load(from_ptr + c, mask=c < num_classes, other=0.0).to(tl.float32)
        if CENTERED:
            # an infinite number is NaN, as in `saturated`
            y = tl.maximum(x - largest, -FARTHEST) + 0.0 * x
        else:
            y = saturated(x)
        tl.store(out_ptr + to * num_classes + c, y, mask=c < num_classes)


def lay_out(
    x: Tensor,  # [M, N, C]
    order: Tensor | None,  # [N]
    divergence: str,
) -> Tensor:  # [M, N, C] float32
    """The rows for a divergence of `OF_LOGITS`."""
    num_modalities, num_rows, num_classes = x.shape
    out = torch.empty(x.shape, dtype=torch.float32, device=x.device)
    _lay_out_kernel[(num_modalities * num_rows,)](
        x_ptr=x.contiguous(),
        order_ptr=None if order is None else order.contiguous(),
        out_ptr=out,
        num_rows=num_rows,
        num_classes=num_classes,
        CENTERED=divergence in OF_SOFTMAX,
        BLOCK_C=min(1024, triton.next_power_of_2(num_classes)),
        num_warps=1,
    )
    return out
