"""D_S of every subset S over all its (row, donor) pairs and the routed gradient: the launchers.

    D_S = sum_pairs f JSD(softmax z_i, softmax w(S, i, j)),   f = weight_i / sum of the weights

A forward with gradient is two kernels, the rows' side (`_own_side.py`) and the donors' side
(`_donor_side.py`); a batch too small to fill a GPU is cut along the permutations as well, and the
parts are added up in order.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from mcr_fast.kernels import config
from mcr_fast.kernels.arguments import FLOATS, check, check_pairs
from mcr_fast.kernels.divergence import KINDS
from mcr_fast.kernels.pairs.donor_side import _donor_side_kernel
from mcr_fast.kernels.pairs.donors import (
    EXCLUDE,
    EXHAUSTIVE,
    SHIFTS,
    TABLE,
    _pair_weight_sums_kernel,
)
from mcr_fast.kernels.pairs.lay_out import lay_out
from mcr_fast.kernels.pairs.own_side import CLEAN_PATHS, OUTSIDERS, _own_side_kernel
from mcr_fast.kernels.pairs.permutations import checked_permutations
from mcr_fast.kernels.scale import scale_or_take

PROGRAMS = 528  # that keep a GPU busy: four for each of an H100's 132 multiprocessors


@dataclass
class Problem:
    """The inputs as the kernels take them: contiguous, rows in the order of the scheme."""

    x: Tensor  # [M, N, C]
    bias: Tensor | None  # [C]
    order: Tensor | None  # [N]
    donors: Tensor | None  # [1 or M, K, N], [1 or M, K] or None
    inverse: Tensor | None  # of a table; otherwise as donors
    poison: Tensor | None  # [] NaN where the donors given are no permutations, else 0
    labels: Tensor | None  # [N]
    present: Tensor | None  # [N, M] int8
    weight: Tensor | None  # [N]
    subsets: Tensor  # [S] int32
    single: bool
    scheme: int
    num_permutations: int
    exclude: int

    @property
    def masked(self) -> bool:
        """Whether a pair can be dropped or weigh something else than 1."""
        return self.exclude != 0 or self.present is not None or self.weight is not None

    def masks(self) -> dict[str, Tensor | None]:
        """Pointers that decide what a pair weighs."""
        return {
            "donors_ptr": self.donors,
            "labels_ptr": self.labels,
            "present_ptr": self.present,
            "weight_ptr": self.weight,
            "subsets_ptr": self.subsets,
        }

    def sizes(self) -> dict[str, int]:
        """Sizes that every kernel takes."""
        return {
            "num_modalities": self.x.shape[0],
            "num_rows": self.x.shape[1],
            "num_permutations": self.num_permutations,
        }

    def scheme_flags(self) -> dict[str, int | bool]:
        """Constants that every kernel takes."""
        return {
            "SCHEME": self.scheme,
            "OWN_DONORS": self.donors is not None and self.donors.shape[0] > 1,
            "EXCLUDE": self.exclude,
        }


@functools.lru_cache(maxsize=64)
def _subset_masks(subsets: tuple[int, ...], device: torch.device) -> Tensor:  # [S] int32
    # kept, because copying it from the host cannot be captured in a graph
    return torch.tensor(subsets, dtype=torch.int32, device=device)


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
    scheme = TABLE if order is None else SHIFTS
    inverse = poison = by_position = None
    if donors is None:
        scheme, order = EXHAUSTIVE, None
    elif order is None:
        donors, inverse, _, poison = checked_permutations(donors)
    else:
        order, _, donors, poison = checked_permutations(order, donors)
        inverse = donors  # the donor side goes back by the same shifts
        # donors are contiguous after one reorder of the rows
        by_position = order
        labels, present, sample_weight = (
            t if t is None else t.index_select(0, order) for t in (labels, present, sample_weight)
        )
    if divergence == "mse":
        x = x.contiguous() if by_position is None else x.index_select(1, by_position)
    else:
        x = lay_out(x, by_position, divergence)
        bias = None if bias is None else lay_out(bias[None, None], None, divergence)[0, 0]
    return Problem(
        x,
        None if bias is None else bias.contiguous(),
        order,
        donors,
        inverse,
        poison,
        None if labels is None else labels.contiguous(),
        None if present is None else present.to(torch.int8).contiguous(),
        None if sample_weight is None else sample_weight.contiguous(),
        _subset_masks(tuple(subsets), x.device),
        all(mask & (mask - 1) == 0 for mask in subsets),
        scheme.value,
        max(num_permutations, 0),
        EXCLUDE[exclude],
    )


def _factors(problem: Problem, upstream: Tensor | None, terms: int) -> Tensor:  # [S]
    """Upstream gradient (None: 1) over the sum of the pairs' weights times the terms of a mean."""
    num_subsets, num_rows = len(problem.subsets), problem.x.shape[1]
    if not problem.masked:
        share = 1.0 / (num_rows * problem.num_permutations * terms)
        if upstream is not None:
            return _poisoned(upstream.to(torch.float32) * share, problem)
        if problem.poison is not None:
            return problem.poison.expand(num_subsets) + share
        return torch.full((num_subsets,), share, dtype=torch.float32, device=problem.x.device)
    block = config.WEIGHT_ROWS
    blocks = triton.cdiv(num_rows, block)
    sums = torch.empty((num_subsets, blocks), dtype=torch.float32, device=problem.x.device)
    _pair_weight_sums_kernel[(blocks, num_subsets)](
        **problem.masks(),
        sums_ptr=sums,
        **problem.sizes(),
        **problem.scheme_flags(),
        BLOCK_R=block,
        num_warps=4,
    )
    total = sums.sum(1, dtype=torch.float64)
    share = torch.where(total == 0, 0.0, 1.0 / (total * terms))
    if upstream is not None:
        share = share * upstream
    return _poisoned(share.to(torch.float32), problem)


def _poisoned(factors: Tensor, problem: Problem) -> Tensor:
    """NaN where the donors are no permutations: value and gradients are multiples of a factor."""
    return factors if problem.poison is None else factors + problem.poison


def _parts(tiles: int, num_permutations: int) -> tuple[int, int]:
    """Into how many parts the permutations are cut, and the permutations of each."""
    wanted = max(1, min(PROGRAMS // tiles, num_permutations))
    each = triton.cdiv(num_permutations, wanted)
    return triton.cdiv(num_permutations, each), each


def _run(
    problem: Problem,
    upstream: Tensor | None,  # [S]
    strategy: str,
    clean_path: str,
    divergence: str,
    want_grad: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # [S], [M, N, C], [C]
    """Launch; with an upstream gradient the kernels do nothing where all of it is equal."""
    x, num_subsets = problem.x, len(problem.subsets)
    (num_modalities, num_rows, num_classes), device = x.shape, x.device

    def empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    own = config.own_side(num_classes, want_grad, divergence)
    tiles = triton.cdiv(num_rows, own.blocks["BLOCK_R"])
    parts, each = _parts(tiles, problem.num_permutations)
    kind = KINDS[divergence]
    needs_stats = want_grad and divergence == "jsd"
    values = empty(num_subsets, tiles * parts)
    grad = empty(parts, num_modalities, num_rows, num_classes) if want_grad else None
    shared = empty(tiles * parts, num_classes) if want_grad and problem.bias is not None else None
    common = {
        **problem.masks(),
        **problem.sizes(),
        **problem.scheme_flags(),
        "x_ptr": x,
        "bias_ptr": problem.bias,
        "order_ptr": problem.order,
        "factors_ptr": _factors(problem, upstream, 1 if divergence == "jsd" else num_classes),
        "upstream_ptr": upstream,
        "stats_ptr": empty(num_subsets, problem.num_permutations, num_rows, 2)
        if needs_stats
        else None,
        "p_ptr": empty(num_rows, num_classes) if needs_stats else None,
        "lse_ptr": empty(num_rows) if needs_stats else None,
        "normal_ptr": empty(num_rows, dtype=torch.int8) if needs_stats else None,
        "grad_ptr": grad,
        "num_subsets": num_subsets,
        "num_classes": num_classes,
        "part_permutations": each,
        "KIND": kind,
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
        return divergences, empty(0, 0, 0), empty(0)
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
    check_pairs(
        contributions, bias, order, donors, labels, present, sample_weight, subsets, exclude
    )
    num_modalities, num_rows, num_classes = contributions.shape
    num_permutations = num_rows - 1 if donors is None else donors.shape[1]
    if num_rows == 0 or num_classes == 0 or num_permutations == 0:
        zeros = functools.partial(torch.zeros, dtype=torch.float32, device=contributions.device)
        if not want_grad:
            return zeros(len(subsets)), zeros((0, 0, 0)), zeros(0)
        return zeros(len(subsets)), zeros(contributions.shape), zeros(num_classes)
    problem = _problem(
        contributions, bias, order, donors, labels, present, sample_weight, subsets, divergence,
        exclude,
    )  # fmt: skip
    return _run(problem, None, strategy, clean_path, divergence, want_grad)


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
    check_pairs(
        contributions, bias, order, donors, labels, present, sample_weight, subsets, exclude
    )
    check("grad", grad, contributions, FLOATS, len(subsets))
    check("unit_grad", unit_grad, contributions, FLOATS[:1], *contributions.shape)
    check("unit_grad_bias", unit_grad_bias, contributions, FLOATS[:1], contributions.shape[2])
    dtype = contributions.dtype
    bias_dtype = dtype if bias is None else bias.dtype
    num_permutations = contributions.shape[1] - 1 if donors is None else donors.shape[1]
    if len(subsets) == 1 or grad.stride(0) == 0 or unit_grad.numel() == 0 or num_permutations <= 0:
        return (
            scale_or_take(unit_grad, None, grad[:1], dtype),
            scale_or_take(unit_grad_bias, None, grad[:1], bias_dtype),
        )
    problem = _problem(
        contributions, bias, order, donors, labels, present, sample_weight, subsets, divergence,
        exclude,
    )  # fmt: skip
    upstream = grad.contiguous()
    _, again, again_bias = _run(problem, upstream, strategy, clean_path, divergence, True)
    return (
        scale_or_take(unit_grad, again, upstream, dtype),
        scale_or_take(unit_grad_bias, again_bias, upstream, bias_dtype),
    )
