"""Arguments that the CUDA launchers refuse or answer with NaN; tests/suite has donors."""

import pytest
import torch

pytestmark = pytest.mark.process("emulated")


def forward(*arguments):
    return torch.ops.mcr_fast.permuted_divergence_fwd.default(*arguments)


ROWS, CLASSES = 5, 3


def test_negative_weights_give_nan():
    weight = torch.tensor([1.0, -1.0, 1.0, 1.0, 1.0])
    contributions = torch.randn(2, ROWS, CLASSES)
    rest = (None, None, None, None, weight, [1, 2], "greedy", "shared", "jsd", "none")
    assert forward(contributions, None, *rest, False)[0].isnan().all()


def test_arguments_that_do_not_fit_are_refused():
    contributions = torch.randn(2, ROWS, CLASSES)
    labels = torch.zeros(ROWS - 1, dtype=torch.int64)
    rest = (None, None, labels, None, None, [1, 2], "greedy", "shared", "jsd", "same_label")
    with pytest.raises(RuntimeError, match=r"labels must have shape \[5\], got \[4\]"):
        forward(contributions, None, *rest, False)
    with pytest.raises(RuntimeError, match=r"a subset of 2 modalities must be in 1\.\.3, got 4"):
        forward(contributions, None, *rest[:2], None, None, None, [4], *rest[6:9], "none", False)
