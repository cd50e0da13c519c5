"""A file for each strategy; `find` gives its class."""

import importlib

from ..strategy import Strategy

# In the order of the tables: name -> module and class.
STRATEGIES = {
    "joint": ("joint", "Joint"),
    "unimodal": ("unimodal", "Unimodal"),
    "multi-loss": ("multi_loss", "MultiLoss"),
    "MMCosine": ("mmcosine", "MMCosine"),
    "OGM": ("ogm", "OGM"),
    "OPM": ("opm", "OPM"),
    "AGM": ("agm", "AGM"),
    "MLB": ("mlb", "MLB"),
    "MSLR": ("mslr", "MSLR"),
    "MILES": ("miles", "MILES"),
    "MMPareto": ("mmpareto", "MMPareto"),
    "D&R": ("relearning", "Relearning"),
    "ReconBoost": ("reconboost", "ReconBoost"),
    "MLA": ("mla", "MLA"),
    "Remix": ("remix", "Remix"),
    "OMIB": ("omib", "OMIB"),
    "ARM": ("arm", "ARM"),
    "UMT": ("umt", "UMT"),
    "frozen": ("frozen", "Frozen"),
    "SFC": ("sfc", "SFC"),
    "MCR": ("mcr", "MCR"),
}


def find(name: str) -> type[Strategy]:
    """The class of a strategy; a ValueError names the known ones."""
    if name not in STRATEGIES:
        raise ValueError(f"unknown strategy {name!r}; known: {', '.join(STRATEGIES)}")
    module, of = STRATEGIES[name]
    found: type[Strategy] = getattr(importlib.import_module(f".{module}", __package__), of)
    return found
