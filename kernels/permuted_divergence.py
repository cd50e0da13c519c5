"""D_S of every subset S over all its (row, donor) pairs and the routed gradient: the launchers.

    D_S = sum_pairs f JSD(softmax z_i, softmax w(S, i, j)),   f = weight_i / sum of the weights

A forward with gradient is two kernels, the own side and the donor side (`pairs/`). A batch too
small to fill a GPU is cut along the permutations as well, and the parts are added up in order.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mcr_fast._names import OF_LOGITS, OF_SOFTMAX
from mcr_fast.kernels import config
from mcr_fast.kernels.arguments import FLOATS, check, check_pairs, choice
from mcr_fast.kernels.divergence import KINDS, STORED
from mcr_fast.kernels.pairs.donor_side import _donor_side_kernel
from mcr_fast.kernels.pairs.donors import (
    EXCLUDE,
    EXHAUSTIVE,
    SHIFTS,
    TABLE,
    _pair_weight_sums_kernel,
    packed,
)
from mcr_fast.kernels.pairs.lay_out import lay_out
from mcr_fast.kernels.pairs.own_side import CLEAN_PATHS, OUTSIDERS, _own_side_kernel
from mcr_fast.kernels.pairs.permutations import checked_permutations
from mcr_fast.kernels.scale import scale_or_take


@dataclass
class Problem:
    """The inputs as the kernels take them: contiguous, rows in the order of the scheme."""

    x: Tensor  # [M, N, C]
    bias: Tensor | None  # [C]
    inverse: Tensor | None  # of a table; otherwise the donors
    poison: Tensor | None  # [] NaN where the donors given are no permutations, else 0
    single: bool  # whether every subset has one member
    masked: bool  # whether a pair can be dropped or weigh something else than 1
    divergence: str
    num_permutations: int
    num_subsets: int
    pairs: dict[str, Tensor | int | bool | None]  # arguments of every kernel


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


def _problem(
    contributions: Tensor,
    bias: Tensor | None,
    order: Tensor | None,
    donors: Tensor | None,
    labels: Tensor | None,
    present: Tensor | None,
    sample_weight: Tensor | None,
    subsets: list[int],
    divergence: str,
    exclude: str,
) -> Problem:
    x = contributions
    num_permutations = x.shape[1] - 1 if donors is None else donors.shape[1]
    scheme, inverse, poison, by_position = EXHAUSTIVE, None, None, None
    if donors is None:
        order = None
    elif order is None:
        scheme = TABLE
        donors, inverse, _, poison = checked_permutations(donors)
    else:
        scheme = SHIFTS
        order, _, donors, poison = checked_permutations(order, donors)
        inverse = donors  # the donor side goes back by the same shifts
        # donors are contiguous after one reorder of the rows
        by_position = order
    if divergence in OF_LOGITS:
        x = lay_out(x, by_position, divergence)
        bias = None if bias is None else lay_out(bias[None, None], None, divergence)[0, 0]
    else:
        x = x.contiguous() if by_position is None else x.index_select(1, by_position)
    pairs: dict[str, Tensor | int | bool | None] = {
        "donors_ptr": donors,
        "labels_ptr": _contiguous(labels),
        "present_ptr": None if present is None else present.contiguous().view(torch.int8),
        "weight_ptr": _contiguous(sample_weight),
        "order_ptr": order,
        "num_modalities": x.shape[0],
        "num_rows": x.shape[1],
        "num_permutations": num_permutations,
        "SCHEME": scheme.value,
        **packed(subsets),
        "OWN_DONORS": donors is not None and donors.shape[0] > 1,
        "EXCLUDE": EXCLUDE[exclude],
    }
    single = all(subset & (subset - 1) == 0 for subset in subsets)
    masked = exclude != "none" or present is not None or sample_weight is not None
    return Problem(
        x, _contiguous(bias), inverse, poison, single, masked, divergence, num_permutations,
        len(subsets), pairs,
    )  # fmt: skip


def _factors(problem: Problem, upstream: Tensor | None) -> Tensor:  # [S]
    """Upstream gradient (None: 1) over the sum of the pairs' weights times the terms of a mean.

    NaN where the donors are no permutations: values and gradients are multiples of a factor.
    """
    num_subsets, (_, num_rows, num_classes) = problem.num_subsets, problem.x.shape
    terms = 1 if problem.divergence in OF_SOFTMAX else num_classes
    device = problem.x.device
    if problem.masked:
        block = config.WEIGHT_ROWS
        blocks = triton.cdiv(num_rows, block)
        sums = torch.empty((num_subsets, blocks), dtype=torch.float32, device=device)
        _pair_weight_sums_kernel[(blocks, num_subsets)](
            **problem.pairs, sums_ptr=sums, BLOCK_R=block, num_warps=4
        )
        total = sums.sum(1, dtype=torch.float64)
        factors = torch.where(total == 0, 0.0, 1.0 / (total * terms))
        factors = (factors if upstream is None else factors * upstream).to(torch.float32)
    else:
        share = 1.0 / (num_rows * problem.num_permutations * terms)
        if upstream is not None:
            factors = upstream.to(torch.float32) * share
        elif problem.poison is not None:
            return problem.poison.expand(num_subsets) + share
        else:
            factors = torch.full((num_subsets,), share, dtype=torch.float32, device=device)
    return factors if problem.poison is None else factors + problem.poison


def _notes(problem: Problem, want_grad: bool) -> dict[str, Tensor | None]:
    """Memory for what the own side leaves for the donor side, if the divergence has that."""
    if not (want_grad and problem.divergence in STORED):
        return dict.fromkeys(["stats_ptr", "p_ptr", "lse_ptr", "normal_ptr"])
    _, num_rows, num_classes = problem.x.shape
    empty = functools.partial(torch.empty, dtype=torch.float32, device=problem.x.device)
    return {
        "stats_ptr": empty((problem.num_subsets, problem.num_permutations, num_rows, 2)),
        "p_ptr": empty((num_rows, num_classes)),
        "lse_ptr": empty(num_rows),
        "normal_ptr": empty(num_rows, dtype=torch.int8),
    }


def _run(
    problem: Problem,
    upstream: Tensor | None,  # [S]
    strategy: str,
    clean_path: str,
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [S], [M, N, C], [C]
    """Launch; with an upstream gradient the kernels do nothing where all of it is equal."""
    x, num_subsets = problem.x, problem.num_subsets
    (num_modalities, num_rows, num_classes), device = x.shape, x.device
    empty = functools.partial(torch.empty, dtype=torch.float32, device=device)
    own = config.own_side(num_classes, want_grad, problem.divergence)
    tiles = triton.cdiv(num_rows, own.blocks["BLOCK_R"])
    parts, each = config.parts(tiles, problem.num_permutations)
    values = empty((num_subsets, tiles * parts))
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
        "KIND": KINDS[problem.divergence],
        "SINGLE": problem.single,
        "MASKED": problem.masked,
        "PRECISE": config.PRECISE,
        "ALIGN": config.alignment(num_classes),
    }
    _own_side_kernel[(tiles, parts)](
        **common,
        values_ptr=values,
        shared_ptr=shared,
        CLEAN_PATH=CLEAN_PATHS[clean_path],
        OUTSIDER=OUTSIDERS[strategy],
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


def _check_names(strategy: str, clean_path: str, divergence: str, exclude: str) -> None:
    choice("strategy", strategy, OUTSIDERS)
    choice("clean_path", clean_path, CLEAN_PATHS)
    choice("divergence", divergence, KINDS)
    choice("exclude", exclude, EXCLUDE)


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
    _check_names(strategy, clean_path, divergence, exclude)
    given = contributions, bias, order, donors, labels, present, sample_weight, subsets
    check_pairs(*given, exclude)
    num_modalities, num_rows, num_classes = contributions.shape
    num_permutations = num_rows - 1 if donors is None else donors.shape[1]
    if num_rows == 0 or num_classes == 0 or num_permutations == 0:
        zeros = functools.partial(torch.zeros, dtype=torch.float32, device=contributions.device)
        if not want_grad:
            return zeros(len(subsets)), zeros((0, 0, 0)), zeros(0)
        return zeros(len(subsets)), zeros(contributions.shape), zeros(num_classes)
    problem = _problem(*given, divergence, exclude)
    return _run(problem, None, strategy, clean_path, want_grad)


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
    _check_names(strategy, clean_path, divergence, exclude)
    given = contributions, bias, order, donors, labels, present, sample_weight, subsets
    check_pairs(*given, exclude)
    check("grad", grad, contributions, FLOATS, len(subsets))
    check("unit_grad", unit_grad, contributions, FLOATS[:1], *contributions.shape)
    check("unit_grad_bias", unit_grad_bias, contributions, FLOATS[:1], contributions.shape[2])
    units = unit_grad, unit_grad_bias
    dtypes = contributions.dtype, contributions.dtype if bias is None else bias.dtype
    num_permutations = contributions.shape[1] - 1 if donors is None else donors.shape[1]
    if len(subsets) == 1 or grad.stride(0) == 0 or unit_grad.numel() == 0 or num_permutations <= 0:
        return scale_or_take(units, None, grad[:1], dtypes)
    problem = _problem(*given, divergence, exclude)
    upstream = grad.contiguous()
    _, again, again_bias = _run(problem, upstream, strategy, clean_path, True)
    return scale_or_take(units, (again, again_bias), upstream, dtypes)
