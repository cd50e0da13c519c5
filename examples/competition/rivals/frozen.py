"""Frozen encoders: those of unimodal trainings, and a fusion that is trained on top."""

from ..model import MultimodalModel
from ..strategy import Strategy
from .umt import frozen_encoders
from .unimodal import Unimodal


class Frozen(Strategy):
    """CE(f), trained is the fusion only; the encoders are the teachers' best ones, in eval mode.

    The first stage of late-fusion pipelines, and one side of UMT's rule of choice
    (arXiv 2305.01233): where it beats the ensemble, features of several modalities together matter.

    Args:
        model: what is trained; its encoders are replaced.
        teachers: trained unimodal models with encoders like the model's.
    """

    needs_teachers = True

    def __init__(self, model: MultimodalModel, teachers: Unimodal) -> None:
        super().__init__(model)
        model.encoders = frozen_encoders(teachers, model)

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self.model.encoders.eval()
        return self
