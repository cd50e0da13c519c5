"""What the tests of the contrastive losses share: inputs, and the bound."""

import pytest
import torch
from tolerances import check_gradient, check_value

from mcr_fast import env

needs_library = pytest.mark.skipif(not env.cpu_library_loaded(), reason="no compiled CPU library")


def make_rows(rows: int, width: int, classes: int, dtype=torch.float32, seed: int = 0):
    """Embeddings [L, D], labels [L] far apart and not in order, present [L]."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=g, dtype=torch.float64) * 3
    if classes == 0:
        labels = torch.randperm(rows, generator=g) - 5
    else:
        labels = torch.randint(classes, (rows,), generator=g) * 10**12 - 7
    return x.to(dtype), labels, torch.rand(rows, generator=g) > 0.3


def hold_to_bound(name, ours, truth, plain, x, temperature=0.5, upstream=1.0, case=""):
    """Loss and gradient to the embeddings x; ours, the truth, and the reference's in x's dtype."""
    growth = 1 / temperature
    check_value(name, ours[0], truth[0], plain[0], growth=growth, case=case)
    # what one pair of rows contributes; the gradient itself may cancel to 0
    norms = x.double().norm(dim=1)
    floor = abs(upstream) / (temperature * norms.min() * len(x)) if len(x) else 0.0
    check_gradient(name, ours[1], truth[1], plain[1], growth=growth, floor=float(floor), case=case)
