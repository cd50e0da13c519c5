"""D_S of every subset S over all its (row, donor) pairs and the routed gradient: the launchers.

    D_S = sum_pairs f JSD(softmax z_i, softmax w(S, i, j)),   f = weight_i / sum of the weights

A forward with gradient is two kernels, the own side and the donor side (`pairs/`). A batch too
small to fill a GPU is cut along the permutations as well, and the parts are added up in order.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
import triton
from torch import Tensor

from mcr_fast._names import OF_LOGITS
from mcr_fast.kernels import config
from mcr_fast.kernels.arguments import FLOATS, check
from mcr_fast.kernels.divergence import KINDS, STORED
from mcr_fast.kernels.pairs.asked import Asked, contiguous
from mcr_fast.kernels.pairs.donor_side import _donor_side_kernel
from mcr_fast.kernels.pairs.donors import _pair_weight_sums_kernel
from mcr_fast.kernels.pairs.lay_out import lay_out
from mcr_fast.kernels.pairs.own_side import CLEAN_PATHS, OUTSIDERS, _own_side_kernel
from mcr_fast.kernels.pairs.permutations import checked_permutations
from mcr_fast.kernels.pairs.small import small_backward, small_forward
from mcr_fast.kernels.scale import scale_or_take


@dataclass
class Problem:
    """What the kernels of a large batch take: rows in the order of the scheme."""

    asked: Asked
    x: Tensor  # in memory [M, N, C]
    bias: Tensor | None  # [C]
    inverse: Tensor | None  # of a table; otherwise the donors
    poison: Tensor | None  # [] NaN where the donors given are no permutations, else 0
    pairs: dict[str, Any]  # arguments of every kernel


def _problem(asked: Asked) -> Problem:
    x, bias, donors = asked.contributions, asked.bias, asked.donors
    order, inverse, poison = None, None, None
    if donors is not None and asked.order is None:
        donors, inverse, _, poison = checked_permutations(donors)
    elif donors is not None and asked.order is not None:
        order, _, donors, poison = checked_permutations(asked.order, donors)
        inverse = donors  # the donor side goes back by the same shifts
    if asked.divergence in OF_LOGITS:
        x, bias = lay_out(x, bias, order, asked.divergence)
    else:
        # donors are contiguous after one reorder of the rows
        x = x.contiguous() if order is None else x.index_select(1, order)
    pairs = asked.pairs() | {"donors_ptr": donors, "order_ptr": order}
    return Problem(asked, x, contiguous(bias), inverse, poison, pairs)


def _factors(problem: Problem, upstream: Tensor | None) -> Tensor:  # [S]
    """Upstream gradient (None: 1) over the sum of the pairs' weights times the terms of a mean.

    NaN where the donors are no permutations: values and gradients are multiples of a factor.
    """
    asked, device = problem.asked, problem.x.device
    num_subsets, num_rows = len(asked.subsets), asked.contributions.shape[1]
    if asked.masked:
        block = config.WEIGHT_ROWS
        blocks = triton.cdiv(num_rows, block)
        sums = torch.empty((num_subsets, blocks), dtype=torch.float32, device=device)
        _pair_weight_sums_kernel[(blocks, num_subsets)](
            **problem.pairs, sums_ptr=sums, BLOCK_R=block, num_warps=4
        )
        total = sums.sum(1, dtype=torch.float64)
        factors = torch.where(total == 0, 0.0, asked.share / total)
        factors = (factors if upstream is None else factors * upstream).to(torch.float32)
    else:
        if upstream is not None:
            factors = upstream.to(torch.float32) * asked.share
        elif problem.poison is not None:
            return problem.poison.expand(num_subsets) + asked.share
        else:
            factors = torch.full((num_subsets,), asked.share, dtype=torch.float32, device=device)
    return factors if problem.poison is None else factors + problem.poison


def _notes(problem: Problem, want_grad: bool) -> dict[str, Tensor | None]:
    """Memory for what the own side leaves for the donor side, if the divergence has that."""
    if not (want_grad and problem.asked.divergence in STORED):
        return dict.fromkeys(["stats_ptr", "p_ptr", "lse_ptr", "normal_ptr"])
    _, num_rows, num_classes = problem.asked.contributions.shape
    empty = functools.partial(torch.empty, dtype=torch.float32, device=problem.x.device)
    return {
        "stats_ptr": empty(
            (len(problem.asked.subsets), problem.asked.num_permutations, num_rows, 2)
        ),
        "p_ptr": empty((num_rows, num_classes)),
        "lse_ptr": empty(num_rows),
        "normal_ptr": empty(num_rows, dtype=torch.int8),
    }


def _run(
    problem: Problem,
    upstream: Tensor | None,  # [S]
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [S], [M, N, C], [C]
    """Launch; with an upstream gradient the kernels do nothing where all of it is equal."""
    asked, x = problem.asked, problem.x
    (num_modalities, num_rows, num_classes), device = asked.contributions.shape, x.device
    empty = functools.partial(torch.empty, dtype=torch.float32, device=device)
    own = config.own_side(num_classes, want_grad, asked.divergence)
    tiles = triton.cdiv(num_rows, own.blocks["BLOCK_R"])
    parts, each = config.parts(tiles, asked.num_permutations)
    values = empty((len(asked.subsets), tiles * parts))
    grad = empty((parts, num_modalities, num_rows, num_classes)) if want_grad else None
    shared = empty((tiles * parts, num_classes)) if want_grad and problem.bias is not None else None
    common = {
        **problem.pairs,
        "x_ptr": x,
        "bias_ptr": problem.bias,
        "factors_ptr": _factors(problem, upstream),
        "upstream_ptr": upstream,
        **_notes(problem, want_grad),
        "grad_ptr": grad,
        "num_classes": num_classes,
        "part_permutations": each,
        "KIND": KINDS[asked.divergence],
        "SINGLE": asked.single,
        "MASKED": asked.masked,
        "PRECISE": config.PRECISE,
        "ALIGN": config.alignment(num_classes),
    }
    _own_side_kernel[(tiles, parts)](
        **common,
        values_ptr=values,
        shared_ptr=shared,
        CLEAN_PATH=CLEAN_PATHS[asked.clean_path],
        OUTSIDER=OUTSIDERS[asked.strategy],
        GRAD=want_grad,
        **own.launch(),
    )
    divergences = values.sum(1)
    if grad is None:
        return divergences, empty((0, 0, 0)), empty(0)
    donor = config.choose("pairs_donor_side", num_classes)
    class_blocks = triton.cdiv(num_classes, donor.blocks["BLOCK_C"])
    row_blocks = triton.cdiv(num_rows, donor.blocks["BLOCK_R"])
    _donor_side_kernel[(row_blocks * class_blocks, num_modalities, parts)](
        **common,
        inverse_ptr=problem.inverse,
        class_blocks=class_blocks,
        **donor.launch(),
    )
    to_bias = torch.zeros(num_classes, device=device) if shared is None else shared.sum(0)
    return divergences, grad[0] if parts == 1 else grad.sum(0), to_bias


def _is_small(asked: Asked) -> bool:
    _, num_rows, num_classes = asked.contributions.shape
    sizes = len(asked.subsets), num_rows, asked.num_permutations, num_classes
    return bool(asked.subsets) and config.is_small(*sizes)


def permuted_divergence_fwd(
    contributions: Tensor,  # [M, N, C]
    bias: Tensor | None,  # [C]
    order: Tensor | None,  # [N]
    donors: Tensor | None,  # [1 or M, K] shifts with an order, [1 or M, K, N] rows without
    labels: Tensor | None,  # [N]
    present: Tensor | None,  # [N, M]
    sample_weight: Tensor | None,  # [N]
    subsets: list[int],
    strategy: str,
    clean_path: str,
    divergence: str,
    exclude: str,
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [S], [M, N, C], [C]
    """The divergences, and with `want_grad` the gradients for upstream gradients of 1."""
    asked = Asked(
        contributions, bias, order, donors, labels, present, sample_weight, subsets,
        strategy, clean_path, divergence, exclude,
    )  # fmt: skip
    asked.check()
    if contributions[0].numel() == 0 or asked.num_permutations == 0:
        zeros = functools.partial(torch.zeros, dtype=torch.float32, device=contributions.device)
        if not want_grad:
            return zeros(len(subsets)), zeros((0, 0, 0)), zeros(0)
        return zeros(len(subsets)), zeros(contributions.shape), zeros(contributions.shape[2])
    if _is_small(asked):
        return small_forward(asked, want_grad)
    return _run(_problem(asked), None, want_grad)


def permuted_divergence_bwd(
    grad: Tensor,  # [S]
    unit_grad: Tensor,  # [M, N, C]
    unit_grad_bias: Tensor,  # [C]
    contributions: Tensor,  # and on: as the forward took them
    bias: Tensor | None,
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
) -> tuple[Tensor, Tensor]:  # [M, N, C], [C]
    """The gradients: the unit gradients scaled, or taken again if the subsets' factors differ.

    Whether they differ is seen on the device; where the layout says that they cannot, as in the
    backward of a sum, nothing is launched for it.
    """
    asked = Asked(
        contributions, bias, order, donors, labels, present, sample_weight, subsets,
        strategy, clean_path, divergence, exclude,
    )  # fmt: skip
    asked.check()
    check("grad", grad, contributions, FLOATS, len(subsets))
    check("unit_grad", unit_grad, contributions, FLOATS[:1], *contributions.shape)
    check("unit_grad_bias", unit_grad_bias, contributions, FLOATS[:1], contributions.shape[2])
    units = unit_grad, unit_grad_bias
    dtypes = contributions.dtype, contributions.dtype if bias is None else bias.dtype
    nothing = unit_grad.numel() == 0 or asked.num_permutations <= 0
    if len(subsets) == 1 or grad.stride(0) == 0 or nothing:
        return scale_or_take(units, None, grad[:1], dtypes)
    if _is_small(asked):
        return small_backward(asked, grad.contiguous(), units, dtypes)
    upstream = grad.contiguous()
    _, again, again_bias = _run(_problem(asked), upstream, True)
    return scale_or_take(units, (again, again_bias), upstream, dtypes)
