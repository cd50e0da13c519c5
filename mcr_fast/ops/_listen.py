"""Listening to the backward of a linear fusion's ops, which have apart what they add up."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor


class Heard(NamedTuple):
    """What a backward has apart: the task's gradient, and those of the divergences and L_Con."""

    grads: tuple[Tensor | None, ...]  # upstream ones of the loss, of L_MIPD, of L_Con, each []
    to_logits: Tensor | None  # [N, C] or [M, N, C] of equal ones, of whatever the logits were for
    unit_grad: Tensor  # [M, N, C], of the divergences' sum to the contributions
    unit_grad_rows: Tensor | None  # [M * N, D], of L_Con to the latents, if the op makes it
    weights: tuple[float, float]  # of L_MIPD and of L_Con in the loss
    weight: Tensor  # [C, sum of D_m], of the layer
    widths: tuple[int, ...]  # D_m


def listen(mipd: Tensor, listener: Callable[[Heard], None]) -> bool:
    """Have the backward of a step heard; False if no op that can be heard made its L_MIPD.

    Ops whose backward is heard make ``ctx.listeners`` empty when they save what they need.
    """
    node: Any = mipd.grad_fn
    for _ in range(3):  # the op's own output, or minus the sum of one
        if hasattr(node, "listeners"):
            node.listeners = (*node.listeners, listener)
            return True
        if node is None or len(node.next_functions) != 1:
            break
        node = node.next_functions[0][0]
    return False
