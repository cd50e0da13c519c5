"""How much a fusion uses each modality, and a warning, once, when it has stopped to use one."""

import warnings

import torch
from torch import Tensor

from mcr_fast._checks.later import LateValues, can_be_read

LEAST = 0.02  # importance below this is that of a modality left behind
EVERY = 16  # forwards from one look to the next
# Looks in a row. A slow modality is low at first; with the unimodal losses it recovers before this
# on the task of bench/two_speed.py, and a test holds it to that.
PATIENCE = 32


def importance_of(divergences: Tensor, num_modalities: int) -> Tensor:  # [S] -> [M]
    """Each modality's share of the single-modality divergences, which come first."""
    single = divergences
    if divergences.shape[0] != num_modalities:
        single = divergences[:num_modalities]
    single = single.relu()  # rounding can leave one just below 0
    total = single.sum()
    return (single / total).masked_fill_(total.logical_not(), 1 / num_modalities)


class ImportanceWatch:
    """Warns once when the importance of a modality stays under 2 %.

    Hand it `MCROutput.importance` in every forward that is trained on. It counts, and looks at
    every 16th only, so the cost is that of an addition. It never waits for a device: a look asks
    for the values, the next one reads them. It does nothing under ``torch.compile``, in the capture
    of a CUDA graph, and on devices other than the CPU and CUDA.
    """

    def __init__(self, num_modalities: int) -> None:
        self.warned = False
        self._forwards = 0
        self._low = [0] * num_modalities  # looks in a row that found less than LEAST
        self._late = LateValues()

    def see(self, importance: Tensor) -> None:  # [M], detached
        """One forward's importance."""
        if torch.compiler.is_compiling() or self.warned:
            return  # before the count, which a compiled graph would be specialised to
        self._forwards += 1
        if self._forwards % EVERY or not can_be_read(importance):
            return
        self._judge(self._late.take())
        if not self._late.pending:
            self._late.ask(importance)

    def _judge(self, importance: list[float] | None) -> None:
        # None: nothing was asked for, or it has not arrived
        for m, share in enumerate(importance or ()):
            self._low[m] = self._low[m] + 1 if share < LEAST else 0  # NaN is not less
            if self._low[m] >= PATIENCE and not self.warned:
                self.warned = True
                warnings.warn(_text(m, len(self._low)), UserWarning, stacklevel=8)


def _text(modality: int, num_modalities: int) -> str:
    return (
        f"MCRLoss: the importance of modality {modality} (of 0..{num_modalities - 1}, in the order "
        f"of latents) stayed under {LEAST:.0%} in the last {PATIENCE} looks, one every {EVERY} "
        "training forwards: the fusion hardly uses it. Add the unimodal losses of Algorithm 1, the "
        "task loss of a linear head on each modality's own latents, with a weight of about "
        "three times contrastive_weight; if they are there, raise their weight or lower "
        "contrastive_weight. See 'Use' in README.md and docs/training.md. This warning comes once."
    )
