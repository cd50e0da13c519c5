"""Synergy: a label that only both views together tell, beside some evidence of it in each.

The label is the sum of two attributes, independent and equally likely; each view has the code of
one of them. One attribute leaves as many sums open as the other has values, so that no ensemble of
unimodal models, however good they are, is told the sum by the attributes: whether probabilities or
logits are averaged, the two only exclude what either excludes. A linear fusion can tell it, by
logits y * (a + b) - y^2 / 2. (It could not tell a sum modulo the number of values, as no
f_y(a) + g_y(b) is largest at that for all a and b.) Besides, each view has a faint code of the
label itself, of which ensembles make something. Then the first view is multiplied by s, as in
`speed`, so that there is competition, too. There is one setting, and the classes are not equally
likely: 1 to 4 of 16 pairs have a sum.

The constants were chosen by joint and unimodal training alone, on test rows of seeds 100 and 101:
joint training is to be ten points or more above both ensembles, and at the s that is taken (of 1,
.1 and .05) five points or more below itself at s = 1, while the first view alone is learned as well
as at s = 1. With lengths of 5 and 1.5, which were taken first, averaged logits are level with joint
training at s = .05.
"""

import torch
from torch import Tensor

from ..model import Batch
from .base import Data, Family

VALUES = 4  # of an attribute
CLASSES = 2 * VALUES - 1
WIDTHS = (16, 32)  # of the views
ATTRIBUTE, LABEL = 7.0, 1.0  # length of their codes, on average; the noise has deviation 1
TRAIN, VALIDATION, TEST = 512, 1000, 10000


def load(scale: float, seed: int) -> Data:
    """Codes, rows and noise of a seed; `scale` multiplies the first view only."""
    generator = torch.Generator().manual_seed(5000 + seed)

    def codes(number: int, length: float) -> list[Tensor]:
        """Of each view, [number, width]."""
        return [length * torch.randn(number, w, generator=generator) / w**0.5 for w in WIDTHS]

    of_attribute, of_label = codes(VALUES, ATTRIBUTE), codes(CLASSES, LABEL)

    def rows(number: int) -> Batch:
        attributes = torch.randint(VALUES, (2, number), generator=generator)
        labels = attributes.sum(0)
        slow, other = (
            value[a] + label[labels] + torch.randn(number, label.shape[1], generator=generator)
            for value, label, a in zip(of_attribute, of_label, attributes, strict=True)
        )
        return Batch((scale * slow, other), labels)

    return Data(rows(TRAIN), rows(VALIDATION), rows(TEST), CLASSES)


SYNERGY = Family(
    "Synergy (synthetic)", ("slow view", "other view"), "s", (0.05,), load, batch_size=64
)
