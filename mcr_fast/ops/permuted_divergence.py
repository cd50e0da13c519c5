"""Permuted divergence: fake, autograd and the choice of backend."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mcr_fast.ops._backend import resolve, shared_memory
from mcr_fast.ops._dispatch import call, find, register
from mcr_fast.ops._limits import Call, pairs_of
from mcr_fast.ops._modes import wants_gradient
from mcr_fast.pairing import weights_in_range
from mcr_fast.reference._similarity import accumulation_dtype
from mcr_fast.reference.permuted_divergence import permuted_divergence_reference

_TENSORS = 7  # the tensor arguments of the op come first, then subsets and the option strings


def _forward_fake(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    contributions, subsets, want_grad = args[0], args[7], args[12]
    dtype = accumulation_dtype(contributions.dtype)
    shape = contributions.shape if want_grad else (0, 0, 0)
    return (
        contributions.new_empty(len(subsets), dtype=dtype),
        contributions.new_empty(shape, dtype=dtype),
        contributions.new_empty(shape[2], dtype=dtype),
    )


def _backward_fake(
    grad: Tensor, unit_grad: Tensor, unit_grad_bias: Tensor, *args: Any
) -> tuple[Tensor, Tensor]:
    contributions, bias = args[0], args[1]
    dtype = contributions.dtype if bias is None else bias.dtype
    return torch.empty_like(unit_grad, dtype=contributions.dtype), unit_grad_bias.new_empty(
        contributions.shape[2], dtype=dtype
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:], *inputs[:_TENSORS])
    ctx.options = inputs[_TENSORS:-1]


def _backward(
    ctx: Any, run: Callable[..., tuple[Tensor, Tensor]], grad: Tensor, *_: None
) -> tuple[Tensor, Tensor]:
    return run(grad, *ctx.saved_tensors, *ctx.options)


register(
    "permuted_divergence",
    differentiable=2,
    attached=1,
    forward_fake=_forward_fake,
    backward_fake=_backward_fake,
    setup=_setup,
    backward=_backward,
)


def permuted_divergence(
    contributions: Tensor,  # [M, N, C]
    bias: Tensor | None,  # [C]
    order: Tensor | None,  # [N] int64
    donors: Tensor | None,  # [1 or M, K] shifts with an order, [1 or M, K, N] rows without
    labels: Tensor | None,  # [N] int64 codes
    present: Tensor | None,  # [N, M] bool
    sample_weight: Tensor | None,  # [N]
    *,
    subsets: tuple[int, ...],
    strategy: str,
    clean_path: str,
    divergence: str,
    exclude: str,
    backend: str | None,
) -> Tensor:  # [S]
    """D_S of each subset, its gradient routed by `strategy` and `clean_path`."""
    num_modalities, num_rows, size = contributions.shape
    device, dtype = contributions.device, contributions.dtype
    pairs = (order, donors, labels, present)
    options: dict[str, Any] = {
        "subsets": subsets,
        "strategy": strategy,
        "clean_path": clean_path,
        "divergence": divergence,
        "exclude": exclude,
    }
    given = Call(size, modalities=num_modalities)
    if contributions.is_cuda:  # no backend of other tensors asks for the rest
        of_pairs = pairs_of(num_rows, (*pairs, sample_weight, *options.values()))
        given = given._replace(pairs=of_pairs, shared=shared_memory(device))
    chosen = resolve("permuted_divergence", backend, device, dtype, call=given)
    if chosen == "reference":
        return permuted_divergence_reference(contributions, bias, *pairs, sample_weight, **options)
    weight = None if sample_weight is None else weights_in_range(sample_weight)
    want = wants_gradient(contributions, bias)
    inputs = (contributions, bias, *pairs, weight, *options.values(), want)
    divergences: Tensor = call(find("permuted_divergence_fwd", chosen), *inputs, graph=want)[0]
    return divergences
