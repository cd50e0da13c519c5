"""What the argument checks read and make, besides the errors they raise."""

import pytest
import torch
from contrastive import needs_library

from mcr_fast import CyclicPermutations, _checks, functional


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


N = 6
UNEVEN, SHIFTS = torch.tensor([0, 1, 2, 3, 4, 4]), torch.tensor([1, 2])
TABLE = torch.stack([torch.arange(N), UNEVEN])


BAD_VALUES = {
    "permutations[1] is [0, 1, 2, 3, 4, 4]": {"permutations": TABLE},
    "permutations[1, 0] is [0, 1, 2, 3, 4, 4]": {"permutations": TABLE[:, None]},
    "every row of permutations.order": {"permutations": CyclicPermutations(UNEVEN, SHIFTS)},
    "permutations.shifts must be in 1..N-1 = 1..5": {
        "permutations": CyclicPermutations(torch.arange(N), SHIFTS + N - 2)
    },
    "sample_weight must not be negative, got -1.0": {"sample_weight": torch.arange(N) - 1.0},
}


def message(function, *arguments, **options):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        function(*arguments, **options)
    return str(caught.value)


@needs_library
@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("bad", BAD_VALUES)
def test_values_that_the_kernel_reads_are_refused_in_the_words_of_the_edge(bad, grad):
    contributions = torch.ones(2, N, 3, requires_grad=grad)
    latents = [torch.ones(N, 4, requires_grad=grad), torch.ones(N, 2)]
    weight = torch.ones(3, 6)
    texts = {
        message(call, backend=backend, **BAD_VALUES[bad])
        for backend in (None, "cpu", "reference")
        for call in (
            lambda **options: functional.permuted_divergence(contributions, **options),
            lambda **options: functional.linear_permuted_divergence(latents, weight, **options),
        )
    }
    assert len(texts) == 1, "whoever computes, the same words"
    assert bad in texts.pop()


@needs_library
@pytest.mark.parametrize("backend", [None, "cpu", "reference"])
def test_rows_and_weights_of_rows_are_refused_in_the_words_of_the_edge(backend):
    clean, rows = torch.ones(N, 3), torch.arange(N)
    call = functional.row_divergence
    text = message(call, clean, clean, rows + 1, backend=backend)
    assert text == "rows must be in 0..N-1 = 0..5, got 1..6"
    text = message(call, clean, clean, rows, row_weight=rows - 1.0, backend=backend)
    assert text == "row_weight must not be negative, got -1.0"


@needs_library
def test_a_kernel_that_raises_for_another_reason_keeps_its_words(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(functional, "_permuted_divergence", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        functional.permuted_divergence(torch.ones(2, N, 3), torch.arange(N)[None])
