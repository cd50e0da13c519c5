"""The order that a contrastive batch's rows stand in: by label, absent ones last."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # rows that the program reads at once


@triton.jit
def _absent_last_kernel(
    codes_ptr,  # [L], ascending
    from_ptr,  # [L], where each stood
    present_ptr,  # [L], of the rows where they stood
    sorted_codes_ptr,  # [L]
    order_ptr,  # [L]
    num_present_ptr,  # [1]
    num_rows,
    BLOCK: tl.constexpr,
):
    """One program: what stands before a row is known when the program comes to it."""
    before = 0
    for first in range(0, num_rows, BLOCK):
        a = first + tl.arange(0, BLOCK)
        inside = a < num_rows
        from_row = tl.load(from_ptr + a, mask=inside, other=0)
        present = tl.load(present_ptr + from_row, mask=inside, other=0).to(tl.int32) != 0
        place = before + tl.cumsum(present.to(tl.int32), 0) - 1
        # absent ones from the other end
        place = tl.where(present, place, num_rows + place - a)
        tl.store(order_ptr + place, from_row, mask=inside)
        code = tl.load(codes_ptr + a, mask=inside, other=0)
        tl.store(sorted_codes_ptr + place, code, mask=inside)
        before += tl.sum(present.to(tl.int32), 0)
    tl.store(num_present_ptr, tl.cast(before, tl.int64))


def sort_by_label(
    labels: Tensor,  # [L] int64
    present: Tensor | None,  # [L] bool
) -> tuple[Tensor, Tensor, Tensor | None]:  # [L], [L], [1] or None
    """Labels, and where their rows stood, by label with absent rows last; P if not all are there.

    The absent ones' labels are in no order.
    """
    codes, order = torch.sort(labels, stable=True)
    if present is None:
        return codes, order, None
    sorted_codes, sorted_order = torch.empty_like(codes), torch.empty_like(order)
    num_present = torch.empty(1, dtype=torch.int64, device=labels.device)
    _absent_last_kernel[(1,)](
        codes_ptr=codes,
        from_ptr=order,
        present_ptr=present.contiguous(),
        sorted_codes_ptr=sorted_codes,
        order_ptr=sorted_order,
        num_present_ptr=num_present,
        num_rows=len(codes),
        BLOCK=min(BLOCK, triton.next_power_of_2(len(codes))),
        num_warps=8,
    )
    return sorted_codes, sorted_order, num_present
