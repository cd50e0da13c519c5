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
def lay_out_row(from_ptr, to_ptr, num_classes, CENTERED: tl.constexpr, BLOCK_C: tl.constexpr):
    """One row."""
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
        tl.store(to_ptr + c, y, mask=c < num_classes)


@triton.jit
def _lay_out_kernel(
    x_ptr,  # [M, N, C]
    bias_ptr,  # [C] or None
    order_ptr,  # [N] or None
    out_ptr,  # [M, N, C], and after it [C]
    num_modalities,
    num_rows,
    num_classes,
    CENTERED: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    to = tl.program_id(0).to(tl.int64)
    out_ptr += to * num_classes
    m = to // num_rows
    if m < num_modalities:
        row = to % num_rows
        if order_ptr is not None:
            row = tl.load(order_ptr + row)
        x_ptr += (m * num_rows + row) * num_classes
        lay_out_row(x_ptr, out_ptr, num_classes, CENTERED, BLOCK_C)
    elif bias_ptr is not None:
        lay_out_row(bias_ptr, out_ptr, num_classes, CENTERED, BLOCK_C)


def lay_out(
    x: Tensor,  # [M, N, C]
    bias: Tensor | None,  # [C]
    order: Tensor | None,  # [N]
    divergence: str,
) -> tuple[Tensor, Tensor | None]:  # as x and bias, float32
    """The rows for a divergence of `OF_LOGITS`."""
    num_modalities, num_rows, num_classes = x.shape
    rows = num_modalities * num_rows + (bias is not None)
    out = torch.empty((rows, num_classes), dtype=torch.float32, device=x.device)
    _lay_out_kernel[(rows,)](
        x_ptr=x.contiguous(),
        bias_ptr=None if bias is None else bias.contiguous(),
        order_ptr=None if order is None else order.contiguous(),
        out_ptr=out,
        num_modalities=num_modalities,
        num_rows=num_rows,
        num_classes=num_classes,
        CENTERED=divergence in OF_SOFTMAX,
        BLOCK_C=min(1024, triton.next_power_of_2(num_classes)),
        num_warps=1,
    )
    return out, None if bias is None else out[-1]
