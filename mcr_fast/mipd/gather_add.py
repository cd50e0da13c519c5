"""Perturbed hidden rows on Triton kernels: for the generic-fusion engine.

No dispatcher op: the engine calls these on tensors that are cut from every graph, never while a
compiler is tracing, and routes the gradient by itself.
"""

import importlib
from typing import Any

import torch
from torch import Tensor

from mcr_fast.ops._backend import resolve


def serves(backend: str | None, *tensors: Tensor | None) -> bool:
    """Whether Triton's kernels take these: where they take the divergence of the rows.

    Raises:
        ValueError, RuntimeError: as `resolve`, which the rows' divergence would raise too.
    """
    given = [x for x in tensors if x is not None]
    dtypes = [x.dtype for x in given]
    if torch.float64 in dtypes:
        return False
    return resolve("row_divergence", backend, given[0].device, *dtypes) == "triton"


def gather_add(
    x: Tensor,  # [M, N, H] contiguous
    hidden: Tensor,  # [N, H] float32, the clean rows
    donors: Tensor,  # [1 or M, K, N] int64
    kept: Tensor | None,  # [R] bool
    subset: int,
    bounds: tuple[int, int],  # first and last row, exclusive
    activation: str,
    dtype: torch.dtype,
) -> Tensor:  # [R, H]
    """hidden_i + sum over the subset of (A_m[j] - A_m[i]), activated; 0 before it if dropped."""
    arguments = (x, hidden, donors.contiguous(), kept, subset, *bounds, activation)
    return _launch("gather_add_fwd", x, *arguments, dtype)


def gather_add_backward(
    grad: Tensor,  # [R, H]
    x: Tensor,  # and on: as `gather_add` took them
    hidden: Tensor,
    donors: Tensor,
    kept: Tensor | None,
    subset: int,
    bounds: tuple[int, int],
    activation: str,
    inverse: Tensor,  # [1 or M, K, N] int64, of the donors
    total: Tensor,  # [M, N, H] float32, added to
) -> Tensor:  # [rows, H] float32
    """Add what the subset's donors get to `total`, return what reaches the rows themselves."""
    arguments = (x, hidden, donors.contiguous(), kept, subset, *bounds, activation)
    return _launch("gather_add_bwd", x, grad, *arguments, inverse.contiguous(), total)


def _launch(name: str, like: Tensor, *arguments: Any) -> Tensor:
    """Call a launcher, imported when it is first called, under the tensors' own device."""
    launcher = getattr(importlib.import_module("mcr_fast.kernels.gather_add"), name)
    with torch.cuda.device_of(like):  # for CPU tensors a no-op
        launched: Tensor = launcher(*arguments)
    return launched
