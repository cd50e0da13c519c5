"""A file for each data set; a seed redraws rows, noise and split."""

from .av_digits import DIGITS, NOISE
from .base import Data, Family, MissingPackage
from .figure1 import FIGURE1
from .hidden import HIDDEN
from .htad import HTAD
from .speed import SPEED
from .synergy import SYNERGY
from .uci import UCI

FAMILIES: dict[str, Family] = {
    "speed": SPEED,
    "hidden": HIDDEN,
    "synergy": SYNERGY,
    "figure1": FIGURE1,
    "digits": DIGITS,
    "noise": NOISE,
    "uci": UCI,
    "htad": HTAD,
}

__all__ = ["FAMILIES", "Data", "Family", "MissingPackage"]
