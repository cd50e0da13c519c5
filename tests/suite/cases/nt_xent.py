"""nt_xent: what both contrastive losses are put through, and where it alone is small."""

from collections.abc import Iterator

import torch

from suite import checks
from suite.cases import CPU, Case
from suite.embeddings import case, keeps_digits, of_op, separated


def cases() -> Iterator[Case]:
    yield from of_op("nt_xent")
    # no negatives
    yield case("nt_xent", "one_class", 300, 8, 1, checks=(checks.zero,), quick=CPU)
    yield case("nt_xent", "one_class", 40, 8, 1, checks=(checks.zero,))
    for dtype in (torch.float32, torch.float16):
        rest = {"checks": (keeps_digits,), "quick": True, "dtype": dtype, "temperature": 0.05}
        yield case("nt_xent", "separated", 40, 4, 4, change=separated, **rest)
