"""Weighted sum of the divergences of perturbed rows from indexed clean rows, and its gradients.

    total = sum_r weight_r D(z_rows[r], w_r)
    dw_r = weight_r dD/dw,   dz_i = sum over the r with rows[r] = i of weight_r dD/dz

With gradient a program has a tile of clean rows and runs through the perturbed rows held against
each: what a clean row needs is made once and its gradient is summed in one place, in the order of
r. The rows are sorted for that on the device; where they are few, each program finds those of its
clean rows itself. Without gradient a program has a tile of perturbed rows, and nothing is sorted.

Of a perturbed row the forward leaves its gradient, or, for its own backward, four numbers: with
them each class has its part of the gradient without a sum over classes, and a gradient in float32
is neither written nor read.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast._names import OF_SOFTMAX
from mcr_fast.kernels import config
from mcr_fast.kernels.arguments import CODES, FLOATS, check, choice
from mcr_fast.kernels.divergence import KINDS, NATS, STORED, finish_rows
from mcr_fast.kernels.row_pairs import (
    NOTES,
    bounded,
    clean_of,
    collect,
    find_starts,
    load_tile,
    pair_of,
    plain_u,
    store_notes,
    u_of_pair,
    weight_of,
)
from mcr_fast.kernels.scale import scale_block, scale_or_take, upstream_factor
from mcr_fast.kernels.sums import add_up, store_sums


@triton.jit
def _row_divergence_fwd_kernel(
    perturbed_ptr,  # [R, C]
    clean_ptr,  # [N, C]
    rows_ptr,  # [R]
    weight_ptr,  # [R] or None
    sorted_ptr,  # [R] `rows` sorted; None without gradient, or where each program finds its own
    order_ptr,  # [R] perturbed rows by clean row; None without gradient
    values_ptr,  # [2, programs] sums of values and weights; [1] each if there is one program
    total_ptr,  # []
    total_weight_ptr,  # []
    grad_perturbed_ptr,  # [R, C]; None without gradient, or with notes
    notes_ptr,  # [R, NOTES]; None without gradient, or with one
    grad_clean_ptr,  # [N, C]
    num_perturbed,
    num_clean,
    num_classes,
    steps,  # that halve R to nothing
    share,
    KIND: tl.constexpr,
    GRAD: tl.constexpr,
    ALONE: tl.constexpr,  # there is one program
    MEAN: tl.constexpr,
    PRECISE: tl.constexpr,
    ALIGN: tl.constexpr,  # a divisor of the number of classes
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_S: tl.constexpr,  # rows that a program looks through at once
):
    num_classes = num_classes // ALIGN * ALIGN  # tells the compiler how far loads can be joined
    block = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    classes = tl.arange(0, BLOCK_C)
    real = classes < num_classes
    i = block.to(tl.int64)
    if not GRAD:
        inside = i < num_perturbed
        start, count = i, inside.to(tl.int32)
        i = tl.load(rows_ptr + i, mask=inside, other=0)
    else:
        inside = i < num_clean
        if sorted_ptr is not None:
            start, count = find_starts(sorted_ptr, i, num_perturbed, num_clean, steps)
        else:
            start, count = collect(rows_ptr, order_ptr, block, num_perturbed, num_clean, BLOCK_S)
    known = inside & (i >= 0) & (i < num_clean)
    own = load_tile(clean_ptr, i, classes, known[:, None] & real[None, :], num_classes)
    own = bounded(own, KIND)
    clean, top = clean_of(own, inside, real, KIND, PRECISE)
    acc = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    value = tl.zeros([BLOCK_R], tl.float32)
    weights = tl.zeros([BLOCK_R], tl.float64)  # one clean row may have all the perturbed ones
    seen = count < 0
    for t in range(tl.max(count, 0)):
        given = t < count
        r = (start + t).to(tl.int64)
        if GRAD:
            r = tl.load(order_ptr + r, mask=given, other=0).to(tl.int64)
        matched = known & (tl.load(rows_ptr + r, mask=given, other=-1) == i)
        weight = weight_of(weight_ptr, r, given)
        if weight_ptr is not None:
            weights += weight.to(tl.float64)
        kept = weight != 0.0
        mask = given[:, None] & real[None, :]
        w = load_tile(perturbed_ptr, r, classes, mask & kept[:, None], num_classes)
        w = tl.where(matched[:, None], bounded(w, KIND), float("nan"))
        pair = pair_of(w, own, clean, top, kept, real, KIND, PRECISE)
        value += tl.where(kept, weight * pair.value, 0.0)
        if GRAD:
            seen = seen | kept
            acc += tl.where(kept[:, None], weight[:, None] * pair.to_clean, 0.0)
        if notes_ptr is not None:
            store_notes(notes_ptr, r, given, top, clean.lse, pair)
        if grad_perturbed_ptr is not None:
            u = tl.where(kept[:, None], (share * weight)[:, None] * pair.to_perturbed, 0.0)
            at = r[:, None] * num_classes + classes[None, :]
            tl.store(grad_perturbed_ptr + at, u, mask=mask)
    total, weight = share * tl.sum(value, 0), tl.sum(weights, 0)
    if ALONE:
        if weight_ptr is None:
            weight += num_perturbed
        store_sums(total.to(tl.float64), weight, total_ptr, total_weight_ptr, MEAN)
    else:
        tl.store(values_ptr + tl.program_id(0), total)
        if weight_ptr is not None:
            tl.store(values_ptr + tl.num_programs(0) + tl.program_id(0), weight.to(tl.float32))
    if GRAD:
        v, _ = finish_rows(acc, clean, KIND, PRECISE)
        v = tl.where(seen[:, None], share * v, 0.0)
        at = i[:, None] * num_classes + classes[None, :]
        tl.store(grad_clean_ptr + at, v, mask=inside[:, None] & real[None, :])


@triton.jit
def _row_divergence_bwd_kernel(
    perturbed_ptr,  # [R, C]
    clean_ptr,  # [N, C]
    rows_ptr,  # [R]
    weight_ptr,  # [R] or None
    notes_ptr,  # [R, NOTES]; None of a divergence that needs none
    unit_grad_clean_ptr,  # [N, C]
    upstream_ptr,  # []
    mean_weight_ptr,  # [], of a mean; or None
    grad_perturbed_ptr,  # [R, C]
    grad_clean_ptr,  # [N, C]
    num_perturbed,
    num_clean,
    num_classes,
    clean_size,  # N C
    share,
    KIND: tl.constexpr,
    PRECISE: tl.constexpr,
    ALIGN: tl.constexpr,  # a divisor of the number of classes
    BLOCK_R: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    num_classes = num_classes // ALIGN * ALIGN  # tells the compiler how far loads can be joined
    tiles = tl.cdiv(num_perturbed, BLOCK_R)
    block = tl.program_id(0)
    if block < tiles:
        r = block.to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
        classes = tl.arange(0, BLOCK_C)
        real, inside = classes < num_classes, r < num_perturbed
        i = tl.load(rows_ptr + r, mask=inside, other=0)
        known = inside & (i >= 0) & (i < num_clean)
        weight = weight_of(weight_ptr, r, inside)
        kept = inside & (weight != 0.0)
        mask = (known & kept)[:, None] & real[None, :]
        own = load_tile(clean_ptr, i, classes, mask, num_classes)
        w = load_tile(perturbed_ptr, r, classes, mask, num_classes)
        if notes_ptr is None:
            u = u_of_pair(w, own, known, kept, real, KIND, PRECISE)
        else:
            u, enough = plain_u(w, own, notes_ptr, r, kept, PRECISE)
            if not enough:
                u = u_of_pair(w, own, known, kept, real, KIND, PRECISE)
        # u of a row that is dropped is finite
        factor = share * weight * upstream_factor(upstream_ptr, mean_weight_ptr)
        u = (factor[:, None] * u).to(grad_perturbed_ptr.dtype.element_ty)
        at = r[:, None] * num_classes + classes[None, :]
        tl.store(grad_perturbed_ptr + at, u, mask=inside[:, None] & real[None, :])
    else:
        scale_block(
            unit_grad_clean_ptr, None, upstream_ptr, mean_weight_ptr, grad_clean_ptr,
            block - tiles, clean_size, 1, BLOCK_R * BLOCK_C,
        )  # fmt: skip


def _grouped(
    rows: Tensor,  # [R]
    num_clean: int,
) -> tuple[Tensor | None, Tensor]:  # [R] or None, [R]
    """The rows sorted, and where each stood; or memory for the latter where they are few."""
    if config.is_few(len(rows), num_clean):
        return None, torch.empty_like(rows, dtype=torch.int32)
    return torch.sort(rows, stable=True)


def _checked(
    perturbed: Tensor,  # [R, C]
    clean: Tensor,  # [N, C]
    rows: Tensor,  # [R]
    row_weight: Tensor | None,  # [R]
) -> None:
    """That they fit together."""
    check("clean", clean, clean, FLOATS, None, None)
    num_perturbed = len(perturbed)
    check("perturbed", perturbed, clean, FLOATS, num_perturbed, clean.shape[1])
    check("rows", rows, clean, CODES, num_perturbed)
    check("row_weight", row_weight, clean, (*FLOATS, torch.float64), num_perturbed)
    if len(clean) == 0 and num_perturbed > 0:
        raise ValueError("rows must be in 0..N-1, but clean has no rows")


def _common(
    perturbed: Tensor,  # [R, C]
    clean: Tensor,  # [N, C]
    rows: Tensor,  # [R]
    row_weight: Tensor | None,  # [R]
    divergence: str,
) -> dict[str, Any]:
    """What both kernels are launched with."""
    num_clean, num_classes = clean.shape
    kind = choice("divergence", divergence, KINDS)
    return {
        "perturbed_ptr": perturbed.contiguous(),
        "clean_ptr": clean.contiguous(),
        "rows_ptr": rows.contiguous(),
        "weight_ptr": None if row_weight is None else row_weight.contiguous(),
        "num_perturbed": len(perturbed),
        "num_clean": num_clean,
        "num_classes": num_classes,
        "share": NATS[divergence] / (1 if divergence in OF_SOFTMAX else num_classes),
        "KIND": kind,
        "PRECISE": config.PRECISE,
        "ALIGN": config.alignment(num_classes),
        **config.held_rows(num_classes, divergence).launch(),
    }


def row_divergence_fwd(
    perturbed: Tensor,  # [R, C]
    clean: Tensor,  # [N, C]
    rows: Tensor,  # [R] int64
    row_weight: Tensor | None,  # [R]
    divergence: str,
    want_grad: bool,
    notes: bool,
    mean: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # [], [], [R, C] or [R, NOTES], [N, C]
    """Weighted sum or mean, sum of the weights, and the gradients of the weighted sum.

    With `notes` in place of the first gradient what the backward makes it of. A row that names no
    clean row gives NaN: to raise, the host would have to wait for the device.
    """
    _checked(perturbed, clean, rows, row_weight)
    common = _common(perturbed, clean, rows, row_weight, divergence)
    (num_clean, num_classes), num_perturbed = clean.shape, len(perturbed)
    float32: dict[str, Any] = {"dtype": torch.float32, "device": perturbed.device}
    width = NOTES.value if notes else num_classes
    of_perturbed, to_clean = (
        torch.empty(shape if want_grad else (0, 0), **float32)
        for shape in ((num_perturbed, width), clean.shape)
    )
    if num_perturbed == 0 or num_clean == 0 or num_classes == 0:
        count = torch.full((), num_perturbed, **float32)
        weight = count if row_weight is None else row_weight.sum(dtype=torch.float32)
        return torch.zeros((), **float32), weight, of_perturbed.zero_(), to_clean.zero_()
    total, weight = torch.empty((), **float32), torch.empty((), **float32)
    ordered, order = _grouped(common["rows_ptr"], num_clean) if want_grad else (None, None)
    tiled = num_clean if want_grad else num_perturbed
    programs = triton.cdiv(tiled, common["BLOCK_R"])
    values = torch.empty((2, programs), **float32) if programs > 1 else None
    _row_divergence_fwd_kernel[(programs,)](
        sorted_ptr=ordered,
        order_ptr=order,
        values_ptr=values,
        total_ptr=total,
        total_weight_ptr=weight,
        grad_perturbed_ptr=of_perturbed if want_grad and not notes else None,
        notes_ptr=of_perturbed if want_grad and notes and divergence in STORED else None,
        grad_clean_ptr=to_clean if want_grad else None,
        steps=num_perturbed.bit_length(),
        GRAD=want_grad,
        ALONE=programs == 1,
        MEAN=mean,
        BLOCK_S=config.rows_at_once(config.held_rows(num_classes, divergence)),
        **common,
    )
    if values is not None:
        weights = None if row_weight is None else values[1]
        add_up(values[0], weights, num_perturbed, total, weight, mean)
    return total, weight, of_perturbed, to_clean


def row_divergence_bwd(
    grad: Tensor,  # []
    weight: Tensor | None,  # [], where `grad` is that of a mean
    of_perturbed: Tensor,  # [R, C], or with notes [R, NOTES]
    unit_grad_clean: Tensor,  # [N, C]
    perturbed: Tensor,  # [R, C]
    clean: Tensor,  # [N, C]
    rows: Tensor,  # [R]
    row_weight: Tensor | None,  # [R]
    divergence: str,
    notes: bool,
) -> tuple[Tensor, Tensor]:  # [R, C], [N, C]
    """The unit gradients, that to the perturbed rows made of notes or given, scaled and cast."""
    _checked(perturbed, clean, rows, row_weight)
    num_perturbed, num_classes = perturbed.shape
    check("weight", weight, perturbed, FLOATS[:1])
    width = NOTES.value if notes else num_classes
    check("of_perturbed", of_perturbed, perturbed, FLOATS[:1], num_perturbed, width)
    check("unit_grad_clean", unit_grad_clean, perturbed, FLOATS[:1], *clean.shape)
    if not notes:
        units, dtypes = (of_perturbed, unit_grad_clean), (perturbed.dtype, clean.dtype)
        return scale_or_take(units, None, grad.reshape(1), dtypes, weight)
    common = _common(perturbed, clean, rows, row_weight, divergence)
    grads = perturbed.new_empty(perturbed.shape), clean.new_empty(clean.shape)
    tile = common["BLOCK_R"] * common["BLOCK_C"]
    blocks = triton.cdiv(num_perturbed, common["BLOCK_R"]) + triton.cdiv(clean.numel(), tile)
    if num_classes and blocks:
        _row_divergence_bwd_kernel[(blocks,)](
            notes_ptr=of_perturbed.contiguous() if divergence in STORED else None,
            unit_grad_clean_ptr=unit_grad_clean.contiguous(),
            upstream_ptr=grad,
            mean_weight_ptr=weight,
            grad_perturbed_ptr=grads[0],
            grad_clean_ptr=grads[1],
            clean_size=clean.numel(),
            **common,
        )
    return grads
