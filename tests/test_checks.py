"""What the argument checks read and make, besides the errors they raise."""

import torch

from mcr_fast import _checks


def test_permutations_are_not_read_off_the_cpu(monkeypatch):
    class Elsewhere(torch.Tensor):
        """A tensor of a device that has to be waited for."""

        is_cpu = False

    elsewhere = torch.empty(1).as_subclass(Elsewhere)
    monkeypatch.delenv("MCR_FAST_CHECK", raising=False)
    assert not _checks.may_read(elsewhere)
    assert _checks.may_read(torch.empty(1))
    monkeypatch.setenv("MCR_FAST_CHECK", "1")
    assert _checks.may_read(elsewhere)
    assert not _checks.may_read(torch.empty(1, device="meta")), "there is nothing to read"


def test_label_codes_are_equal_where_labels_are():
    nan, device = float("nan"), torch.device("cpu")
    labels = torch.tensor([0.0, -0.0, 1.5, nan, nan, 1.5, float("inf"), -float("inf"), 5e-324])
    for dtype in (torch.float64, torch.float32, torch.float16):
        values = labels.to(dtype)
        codes = _checks.label_codes(values, 9, device)
        same = values[:, None] == values
        same |= torch.eye(9, dtype=torch.bool)  # a row is itself, whatever its label
        assert codes.dtype == torch.int64
        assert torch.equal(codes[:, None] == codes, same)
    repeated = _checks.label_codes(labels, 9, device, repeat=2)
    assert repeated[3] != repeated[12], "a NaN label has no positive in the other modality either"
    assert repeated[2] == repeated[11]
    assert _checks.label_codes(torch.tensor([True, False]), 2, device).tolist() == [1, 0]
