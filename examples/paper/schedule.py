"""The published learning rate: full for some steps, then a cosine that starts again and again."""

import math

FIRST, GROWTH = 4, 2  # steps of the first period; each is twice as long as the one before


def factor(step: int, full: int = 780) -> float:
    """What the learning rate is multiplied by after `step` steps, 0 to 1.

    1 for step < full; from then on torch's ``CosineAnnealingWarmRestarts(T_0=4, T_mult=2)``,
    which the published code steps once a batch and by the count of all batches. So the periods
    are of 4, 8, 16, ... steps, and the rate is in the middle of one when it is annealed first.
    """
    if step < full:
        return 1.0
    number = (step // FIRST + 1).bit_length() - 1
    start, period = FIRST * (GROWTH**number - 1), FIRST * GROWTH**number
    return (1 + math.cos(math.pi * (step - start) / period)) / 2
