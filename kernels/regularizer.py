"""The regularizer of a linear fusion: all terms of `MCRLoss` from latents to the weighted loss.

The products are torch's, the divergences and the contrastive loss those of their own launchers;
what lies between them is one kernel in each direction.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels.arguments import check, choice
from mcr_fast.kernels.config import SCALE_BLOCK
from mcr_fast.kernels.nt_xent import nt_xent_fwd
from mcr_fast.kernels.permuted_divergence import permuted_divergence_fwd
from mcr_fast.kernels.sup_con import sup_con_fwd

LOSSES = {"nt_xent": nt_xent_fwd, "sup_con": sup_con_fwd}
FLOAT32 = (torch.float32,)
BLOCK = 1024
BIAS_ROWS, BIAS_CLASSES = 64, 16  # of a tile of the program that adds up the bias's gradient


@triton.jit
def _finish_kernel(
    contributions_ptr,  # [M, N, C]
    bias_ptr,  # [C] or None
    divergences_ptr,  # [S], those of single modalities first
    contrastive_ptr,  # []
    logits_ptr,  # [N, C]
    loss_ptr,  # []
    mipd_ptr,  # []
    importance_ptr,  # [M]
    size,  # N * C
    num_classes,
    num_modalities,
    num_subsets,
    mipd_weight,
    contrastive_weight,
    MODALITIES: tl.constexpr,
    SUBSETS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The logits, tile by tile; the first program also makes the numbers of the whole batch."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    place = contributions_ptr + at
    logits = tl.load(place, mask=inside, other=0.0)
    for _ in range(1, num_modalities):
        place += size
        logits += tl.load(place, mask=inside, other=0.0)
    if bias_ptr is not None:
        logits += tl.load(bias_ptr + at % num_classes, mask=inside, other=0.0)
    tl.store(logits_ptr + at, logits, mask=inside)
    if tl.program_id(0) == 0:
        subset = tl.arange(0, SUBSETS)
        every = tl.load(divergences_ptr + subset, mask=subset < num_subsets, other=0.0)
        mipd = -tl.sum(every, 0)
        tl.store(mipd_ptr, mipd)
        tl.store(loss_ptr, contrastive_weight * tl.load(contrastive_ptr) + mipd_weight * mipd)
        m = tl.arange(0, MODALITIES)
        single = tl.load(divergences_ptr + m, mask=m < num_modalities, other=0.0)
        total = tl.sum(single, 0)
        share = tl.where(total == 0.0, 1.0 / num_modalities, single / total)
        tl.store(importance_ptr + m, share, mask=m < num_modalities)


@triton.jit
def _factor(first_ptr, weight, second_ptr):
    """weight * first + second, of upstream gradients that may be None."""
    factor = 0.0
    if first_ptr is not None:
        factor += weight * tl.load(first_ptr)
    if second_ptr is not None:
        factor += tl.load(second_ptr)
    return factor


@triton.jit
def _scale(
    unit_ptr,
    out_ptr,
    added_ptr,
    period,
    factor,
    wanted: tl.constexpr,
    tile,
    size,
    BLOCK: tl.constexpr,
):
    """out = factor * unit, if that is wanted, + what repeats every `period` elements."""
    at = tile.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    grad = tl.zeros([BLOCK], tl.float32)
    if wanted:
        grad += factor * tl.load(unit_ptr + at, mask=inside, other=0.0)
    if added_ptr is not None:
        grad += tl.load(added_ptr + at % period, mask=inside, other=0.0)
    tl.store(out_ptr + at, grad, mask=inside)


@triton.jit
def _scale_bias(
    unit_ptr,  # [C]
    out_ptr,  # [C]
    added_ptr,  # [N, C] or None
    num_rows,
    num_classes,
    factor,
    wanted: tl.constexpr,
    tile,
    ROWS: tl.constexpr,
    CLASSES: tl.constexpr,
):
    """out = factor * unit, if that is wanted, + the sum of the rows."""
    classes = tile * CLASSES + tl.arange(0, CLASSES)
    real = classes < num_classes
    grad = tl.zeros([CLASSES], tl.float32)
    if wanted:
        grad += factor * tl.load(unit_ptr + classes, mask=real, other=0.0)
    if added_ptr is not None:
        total = tl.zeros([CLASSES], tl.float64)
        for start in range(0, num_rows, ROWS):
            rows = (start + tl.arange(0, ROWS)).to(tl.int64)[:, None]
            place = added_ptr + rows * num_classes + classes[None, :]
            given = tl.load(place, mask=(rows < num_rows) & real[None, :], other=0.0)
            total += tl.sum(given, 0).to(tl.float64)
        grad += total.to(tl.float32)
    tl.store(out_ptr + classes, grad, mask=real)


@triton.jit
def _scale_terms_kernel(
    loss_ptr,  # [] or None, an upstream gradient, as the next three
    mipd_ptr,  # [] or None
    contrastive_ptr,  # [] or None
    logits_ptr,  # [N, C] or None
    unit_ptr,  # [M, N, C]
    unit_bias_ptr,  # [C]
    unit_rows_ptr,  # [M * N, D]
    contributions_ptr,  # [M, N, C], to fill
    bias_ptr,  # [C], to fill
    rows_ptr,  # [M * N, D], to fill
    num_rows,
    num_classes,
    size,  # M * N * C
    rows_size,  # M * N * D
    mipd_weight,
    contrastive_weight,
    BLOCK: tl.constexpr,
    BIAS_ROWS: tl.constexpr,
    BIAS_CLASSES: tl.constexpr,
):
    """The unit gradients times their factors, and what comes down from the logits added.

    The first programs have the contributions, the next ones the rows, the last ones the bias. A
    term that nobody asked for adds nothing, not 0 times what may be NaN.
    """
    program = tl.program_id(0)
    tiles, row_tiles = tl.cdiv(size, BLOCK), tl.cdiv(rows_size, BLOCK)
    to_mipd: tl.constexpr = loss_ptr is not None or mipd_ptr is not None
    to_rows: tl.constexpr = loss_ptr is not None or contrastive_ptr is not None
    # the value is minus the divergences' sum
    factor = -_factor(loss_ptr, mipd_weight, mipd_ptr)
    if program < tiles:
        period = num_rows * num_classes
        out = contributions_ptr
        _scale(unit_ptr, out, logits_ptr, period, factor, to_mipd, program, size, BLOCK)
    elif program < tiles + row_tiles:
        tile, of_rows = program - tiles, _factor(loss_ptr, contrastive_weight, contrastive_ptr)
        _scale(unit_rows_ptr, rows_ptr, None, 1, of_rows, to_rows, tile, rows_size, BLOCK)
    else:
        _scale_bias(
            unit_bias_ptr,
            bias_ptr,
            logits_ptr,
            num_rows,
            num_classes,
            factor,
            to_mipd,
            program - tiles - row_tiles,
            BIAS_ROWS,
            BIAS_CLASSES,
        )


def _check_layer(latents: list[Tensor], weight: Tensor) -> None:
    if not latents:
        raise ValueError("latents must hold a modality")
    rows, width = latents[0].shape
    for z in latents:
        check("latents", z, weight, FLOAT32, rows, width)
    check("weight", weight, weight, FLOAT32, None, len(latents) * width)


def _columns(weight: Tensor, count: int) -> Tensor:  # [C, M * D] -> [M, C, D]
    """The weight by modality, a view."""
    return weight.unflatten(1, (count, weight.shape[1] // count)).transpose(0, 1)


def _layer_gradients(
    to_contributions: Tensor,  # [M, N, C]
    rows: Tensor,  # [M, N, D], what the latents get besides
    wanted: list[int],
    latents: list[Tensor],
    weight: Tensor,
) -> tuple[list[Tensor], Tensor]:
    """The gradients of the latents, in one product [M, N, D] if all are wanted, and of the weight.

    An op's outputs have a storage each: what was made together is given as one tensor.
    """
    columns = _columns(weight, len(latents))
    if all(wanted[:-1]):
        grads = [torch.baddbmm(rows, to_contributions, columns)]
    else:
        parts = zip(wanted[:-1], rows, to_contributions, columns, strict=True)
        grads = [torch.addmm(*part) if want else rows.new_empty(0, 0) for want, *part in parts]
    grad_weight = torch.empty_like(weight if wanted[-1] else weight[:0, :0])
    if wanted[-1]:
        places = _columns(grad_weight, len(latents))
        for place, grad, z in zip(places, to_contributions, latents, strict=True):
            torch.mm(grad.T, z, out=place)
    return grads, grad_weight


def regularizer_fwd(
    latents: list[Tensor],  # M of [N, D]
    weight: Tensor,  # [C, M * D]
    bias: Tensor | None,  # [C], and on: as permuted_divergence_fwd takes them
    order: Tensor | None,
    donors: Tensor | None,
    labels: Tensor | None,
    present: Tensor | None,
    sample_weight: Tensor | None,
    subsets: list[int],
    strategy: str,
    clean_path: str,
    divergence: str,
    exclude: str,
    classes: Tensor,  # [N] int64, of the contrastive loss
    contrastive: str,
    temperature: float,
    mipd_weight: float,
    contrastive_weight: float,
    want_grad: bool,
) -> tuple[Tensor, ...]:
    """loss, mipd, contrastive, logits, divergences, importance; then the unit gradients."""
    _check_layer(latents, weight)
    choice("contrastive", contrastive, dict.fromkeys(LOSSES, 0))
    check("classes", classes, weight, (torch.int64,), len(latents[0]))
    count, num_classes = len(latents), weight.shape[0]
    stacked = torch.stack(latents)  # [M, N, D]
    contributions = torch.bmm(stacked, _columns(weight, count).mT)
    pairs = (bias, order, donors, labels, present, sample_weight, subsets)
    options = (strategy, clean_path, divergence, exclude)
    divergences, *unit_grads = permuted_divergence_fwd(contributions, *pairs, *options, want_grad)
    rows = stacked.flatten(0, 1), classes, present
    shared, unit_grad_rows = LOSSES[contrastive](*rows, temperature, want_grad)
    logits = weight.new_empty((len(latents[0]), num_classes))
    loss, mipd, importance = (weight.new_empty(shape) for shape in ((), (), (count,)))
    _finish_kernel[(max(1, triton.cdiv(logits.numel(), BLOCK)),)](
        contributions_ptr=contributions,
        bias_ptr=None if bias is None else bias.contiguous(),
        divergences_ptr=divergences,
        contrastive_ptr=shared,
        logits_ptr=logits,
        loss_ptr=loss,
        mipd_ptr=mipd,
        importance_ptr=importance,
        size=logits.numel(),
        num_classes=num_classes,
        num_modalities=count,
        num_subsets=len(subsets),
        mipd_weight=mipd_weight,
        contrastive_weight=contrastive_weight,
        MODALITIES=triton.next_power_of_2(count),
        SUBSETS=triton.next_power_of_2(len(subsets)),
        BLOCK=BLOCK,
        num_warps=4,
    )
    return loss, mipd, shared, logits, divergences, importance, *unit_grads, unit_grad_rows


def regularizer_bwd(
    grad_loss: Tensor | None,  # []
    grad_mipd: Tensor | None,  # []
    grad_contrastive: Tensor | None,  # []
    grad_logits: Tensor | None,  # [N, C]
    unit_grad: Tensor,  # [M, N, C]
    unit_grad_bias: Tensor,  # [C]
    unit_grad_rows: Tensor,  # [M * N, D]
    mipd_weight: float,
    contrastive_weight: float,
    wanted: list[int],  # the gradients to make, of each latent and of the weight
    latents: list[Tensor],
    weight: Tensor,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """The gradients of the latents, the weight and the bias; those not wanted are empty.

    Of the latents it is a list of M, or of one [M, N, D] if all are wanted.
    """
    _check_layer(latents, weight)
    (num_rows, width), num_classes, count = latents[0].shape, weight.shape[0], len(latents)
    check("unit_grad", unit_grad, weight, FLOAT32, count, num_rows, num_classes)
    check("unit_grad_bias", unit_grad_bias, weight, FLOAT32, num_classes)
    check("unit_grad_rows", unit_grad_rows, weight, FLOAT32, count * num_rows, width)
    check("grad_logits", grad_logits, weight, FLOAT32, num_rows, num_classes)
    if len(wanted) != count + 1:
        raise ValueError(f"wanted must hold {count + 1} marks, got {len(wanted)}")
    to_contributions, rows, grad_bias = (
        weight.new_empty(unit.shape) for unit in (unit_grad, unit_grad_rows, unit_grad_bias)
    )
    tiles = (
        triton.cdiv(unit_grad.numel(), SCALE_BLOCK) + triton.cdiv(rows.numel(), SCALE_BLOCK),
        triton.cdiv(num_classes, BIAS_CLASSES),
    )
    if sum(tiles):
        _scale_terms_kernel[(sum(tiles),)](
            loss_ptr=grad_loss,
            mipd_ptr=grad_mipd,
            contrastive_ptr=grad_contrastive,
            logits_ptr=None if grad_logits is None else grad_logits.contiguous(),
            unit_ptr=unit_grad.contiguous(),
            unit_bias_ptr=unit_grad_bias.contiguous(),
            unit_rows_ptr=unit_grad_rows.contiguous(),
            contributions_ptr=to_contributions,
            bias_ptr=grad_bias,
            rows_ptr=rows,
            num_rows=num_rows,
            num_classes=num_classes,
            size=unit_grad.numel(),
            rows_size=rows.numel(),
            mipd_weight=mipd_weight,
            contrastive_weight=contrastive_weight,
            BLOCK=SCALE_BLOCK,
            BIAS_ROWS=BIAS_ROWS,
            BIAS_CLASSES=BIAS_CLASSES,
            num_warps=4,
        )
    by_modality = rows.view(count, num_rows, width)
    return *_layer_gradients(to_contributions, by_modality, wanted, latents, weight), grad_bias
