"""MSLR: a learning rate for each modality, which follows its accuracy on validation.

Yao and Mihalcea, Modality-specific Learning Rates for Effective Multimodal Additive Late-fusion,
Findings of ACL 2022.
"""

from collections import deque
from collections.abc import Sequence

from ..model import Batch, MultimodalModel
from ..strategy import Strategy, accuracy, evaluating


def ratio(found: float, earlier: Sequence[float], memory: int) -> float:
    """An accuracy over the mean of the last `memory` ones, 1 while there are fewer."""
    if len(earlier) < memory:
        return 1.0
    mean = sum(earlier[-memory:]) / memory
    return found / mean if mean > 0 else 1.0


class MSLR(Strategy):
    """CE(f); the learning rate of encoder m is multiplied by l_m * ratio_m.

    ratio_m: accuracy of the modality on validation after this epoch over its mean after the
    `memory` epochs before, for the next epoch. A modality that still gets better is sped up. What
    is asked for its accuracy is its slice of the linear fusion, which is additive late fusion; own
    heads would not be trained. Not for regression. No code of the authors is public; MCR's
    comparison multiplies gradients, which Adam cancels. Another implementation compounds the
    ratios every `memory` epochs, and has this epoch in the mean.

    Args:
        model: what is trained.
        rates: l_m, one for each modality, as multiples of the common rate; published .7 and 1.3
            for CREMA-D, searched, and in the paper the best ones of unimodal training. None: all 1.
        memory: epochs; published 20 in MCR's comparison, 5 in its code's defaults.
        dynamic: whether there is a ratio ("dynamic"); without it l_m stays ("keep").
        smooth: how far l_m is moved to the common rate, 0 to 1 ("smooth"; the paper's form was
            not at hand, this one is linear).
        as_lr: scale the learning rates; False multiplies gradients instead.
    """

    published = "Findings of ACL 2022"

    def __init__(
        self,
        model: MultimodalModel,
        rates: Sequence[float] | None = None,
        memory: int = 20,
        dynamic: bool = True,
        smooth: float = 0.0,
        as_lr: bool = True,
    ) -> None:
        super().__init__(model)
        initial = [1.0] * model.num_modalities if rates is None else list(rates)
        if len(initial) != model.num_modalities:
            raise ValueError(f"{len(initial)} rates for {model.num_modalities} modalities")
        self.rates = [rate + smooth * (1 - rate) for rate in initial]
        self.memory, self.dynamic, self.as_lr = memory, dynamic, as_lr
        self.factors = list(self.rates)
        self._accuracies = [deque[float](maxlen=memory) for _ in initial]

    def first_epoch(self) -> int:
        """That of the first ratio, if the fixed rates are those of joint training."""
        waits = self.dynamic and all(rate == 1 for rate in self.rates)
        return self.memory + 1 if waits else 0

    def after_backward(self) -> None:
        self.scale_gradients(self.factors, self.as_lr)

    def epoch_end(self, epoch: int, train: Batch, validation: Batch) -> None:
        if not self.dynamic:
            return
        with evaluating(self):
            own = self.model.slices(self.model.encode(validation.inputs))
        for m, (logits, earlier) in enumerate(zip(own, self._accuracies, strict=True)):
            found = accuracy(logits, validation.labels)
            self.factors[m] = self.rates[m] * ratio(found, tuple(earlier), self.memory)
            earlier.append(found)
