"""The fused loss against the released formulation: time of one forward and backward."""

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

import mcr_fast

# The released formulation is the baseline of the benchmarks, which lie beside this folder.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


NUM_PERMUTATIONS = 32
FUSED_A_TURN = 20


@dataclass(frozen=True)
class StepTime:
    """Medians in milliseconds."""

    fused: float
    released: float
    turns: int
    sizes: str


def milliseconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return 1e3 * (time.perf_counter() - start)


def fused_against_released(
    latents: list[Tensor],  # 2 tensors [N, D]
    labels: Tensor,  # [N]
    fusion: nn.Linear,
    turns: int,
) -> StepTime | None:
    """L_MIPD + L_Con from latents to gradients, both ways in turn; None without the baseline.

    The baseline's contrastive term is pytorch-metric-learning's.
    """
    latents = [z.detach().requires_grad_() for z in latents]
    rows, width = latents[0].shape
    regularizer = mcr_fast.MCRLoss(
        [width, width], fusion.out_features, num_permutations=NUM_PERMUTATIONS
    )
    try:
        from bench.released import published_nt_xent, released_step

        contrastive = published_nt_xent(regularizer.temperature)
    except ImportError:
        return None

    def fused() -> None:
        regularizer(latents, labels, fusion=fusion).loss.backward()

    def released() -> None:
        released_step(
            latents,
            labels,
            fusion,
            NUM_PERMUTATIONS,
            contrastive,
            mipd_weight=regularizer.mipd_weight,
            contrastive_weight=regularizer.contrastive_weight,
        ).backward()

    fused_times: list[float] = []
    released_times: list[float] = []
    for turn in range(turns + 1):
        # a fused step is so short that each turn affords several
        fused_turn = [milliseconds(fused) for _ in range(FUSED_A_TURN)]
        released_turn = milliseconds(released)
        if turn > 0:  # the first one warms up
            fused_times += fused_turn
            released_times.append(released_turn)
    sizes = f"N={rows} D={width} C={fusion.out_features} K={NUM_PERMUTATIONS}"
    return StepTime(statistics.median(fused_times), statistics.median(released_times), turns, sizes)
