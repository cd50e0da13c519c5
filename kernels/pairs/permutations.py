"""Donors as the kernels may use them: checked on the device, where nothing can be raised.

A kernel that reads a row by its number trusts it. So a table's rows, or an order and its shifts,
are read once before: what is no permutation is replaced by one, and what is computed from it is
poisoned with NaN.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 4096  # rows that a program reads at once, at most


@triton.jit
def check_line(
    line,
    rows_ptr,  # [lines, N] int64
    safe_ptr,  # [lines, N]: the same, or 0..N-1 where a line is no permutation; or None
    inverse_ptr,  # [lines, N]: of the safe ones
    shifts_ptr,  # [num_shifts] or None
    safe_shifts_ptr,  # [num_shifts], 0 in place of one that is not in 1..N-1; or None
    poison_ptr,  # [lines]: 0, or NaN where the line or a shift is wrong
    num_rows,
    num_shifts,
    BLOCK_R: tl.constexpr,
):
    """Check and invert one line; no safe copy where its pointer is None."""
    poison_ptr += line
    line = line.to(tl.int64) * num_rows
    rows_ptr += line
    inverse_ptr += line
    if safe_ptr is not None:
        safe_ptr += line
    block = tl.arange(0, BLOCK_R)
    wrong = tl.zeros([BLOCK_R], tl.int32)
    for first in range(0, num_rows, BLOCK_R):
        i = first + block
        j = tl.load(rows_ptr + i, mask=i < num_rows, other=0)
        inside = (i < num_rows) & (j >= 0) & (j < num_rows)
        tl.store(inverse_ptr + j, i.to(tl.int64), mask=inside)
        wrong = wrong | ((i < num_rows) & ~inside).to(tl.int32)
    tl.debug_barrier()  # every row of this line has written
    for first in range(0, num_rows, BLOCK_R):
        i = first + block
        j = tl.load(rows_ptr + i, mask=i < num_rows, other=0)
        inside = (i < num_rows) & (j >= 0) & (j < num_rows)
        # of two rows with one donor, one does not find itself
        found = tl.load(inverse_ptr + j, mask=inside, other=0)
        wrong = wrong | (inside & (found != i)).to(tl.int32)
    any_wrong = tl.max(wrong, 0)
    tl.debug_barrier()  # nobody reads the inverse any more
    for first in range(0, num_rows, BLOCK_R):
        i = first + block
        j = tl.load(rows_ptr + i, mask=i < num_rows, other=0)
        if any_wrong != 0:
            j = i.to(tl.int64)
            tl.store(inverse_ptr + i, j, mask=i < num_rows)
        if safe_ptr is not None:
            tl.store(safe_ptr + i, j, mask=i < num_rows)
    if shifts_ptr is not None:
        beyond = tl.zeros([BLOCK_R], tl.int32)
        for first in range(0, num_shifts, BLOCK_R):
            k = first + block
            shift = tl.load(shifts_ptr + k, mask=k < num_shifts, other=1)
            good = (shift >= 1) & (shift < num_rows)
            beyond = beyond | ((k < num_shifts) & ~good).to(tl.int32)
            if safe_shifts_ptr is not None:
                tl.store(safe_shifts_ptr + k, tl.where(good, shift, 0), mask=k < num_shifts)
        any_wrong += tl.max(beyond, 0)
    tl.store(poison_ptr, tl.where(any_wrong != 0, float("nan"), 0.0))


@triton.jit
def _permutations_kernel(
    rows_ptr,  # as `check_line` has them
    safe_ptr,
    inverse_ptr,
    shifts_ptr,
    safe_shifts_ptr,
    poison_ptr,
    num_rows,
    num_shifts,
    BLOCK_R: tl.constexpr,
):
    check_line(
        tl.program_id(0), rows_ptr, safe_ptr, inverse_ptr, shifts_ptr, safe_shifts_ptr, poison_ptr,
        num_rows, num_shifts, BLOCK_R,
    )  # fmt: skip


def checked_permutations(
    rows: Tensor,  # [..., N] int64
    shifts: Tensor | None = None,  # int64
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:  # [..., N], [..., N], as shifts, []
    """The permutations, their inverses and the shifts, fit to read by; 0, or NaN if they were not.

    A permutation that is none comes back as 0..N-1, a shift out of 1..N-1 as 0.
    """
    rows = rows.contiguous()
    safe, inverse = torch.empty_like(rows), torch.empty_like(rows)
    num_rows = rows.shape[-1]
    lines = rows.numel() // max(num_rows, 1)
    poison = torch.empty(lines, dtype=torch.float32, device=rows.device)
    shifts = None if shifts is None else shifts.contiguous()
    safe_shifts = None if shifts is None else torch.empty_like(shifts)
    _permutations_kernel[(lines,)](
        rows_ptr=rows,
        safe_ptr=safe,
        inverse_ptr=inverse,
        shifts_ptr=shifts,
        safe_shifts_ptr=safe_shifts,
        poison_ptr=poison,
        num_rows=num_rows,
        num_shifts=0 if shifts is None else shifts.numel(),
        BLOCK_R=min(BLOCK, triton.next_power_of_2(num_rows)),
        num_warps=8 if num_rows > 256 else 4,
    )
    return safe, inverse, safe_shifts, poison[0] if lines == 1 else poison.sum()
