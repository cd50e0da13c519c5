"""Paths of the CUDA library that are not reached, or not seen, by what comes out in tests/suite."""

from dataclasses import replace

import pytest
import torch
from divergences import Batch, assert_same_bits, check, make_batch, paired_off
from emulated import library

from mcr_fast.functional import nt_xent, sup_con

pytestmark = pytest.mark.process("emulated")


@pytest.mark.parametrize("parts", [1, 1 << 16])
def test_rows_far_apart(parts, monkeypatch):
    """The clean row's normaliser leaves the range of float32: the rescaled path."""
    monkeypatch.setenv("MCR_EMULATED_kBusyThreads", str(parts))
    x = paired_off(make_batch(2, 6, 19, "table"), 1, 4)
    x.contributions[:, 1] += torch.linspace(-300, 300, 19)
    x.contributions[:, 4] -= torch.linspace(-300, 300, 19)
    check(x)


def window(first: int) -> Batch:
    """66 rows with 5 donors each, shifts from `first` on."""
    x = make_batch(2, 66, 9, "window", count=5, scale=2.0)
    x.donors = (first - 1 + torch.arange(5))[None] % 65 + 1
    return x


def around(x: Batch) -> Batch:
    """The rows 3 and 40 are far from every other, in opposite directions."""
    x.contributions[0, [3, 40]] += torch.linspace(-200, 200, 9)
    x.contributions[1, [3, 40]] -= torch.linspace(-200, 200, 9)
    return x


@pytest.mark.parametrize(
    ("x", "rows", "donors"),
    [
        (window(7), 0, 0),
        (window(63), 66, 66),  # 63, 64, 65 and, past the row itself, 1, which a band leaves over
        (replace(window(7), contributions=window(7).contributions * 1e-4), 0, 0),
        (make_batch(2, 66, 9, "exhaustive"), 0, 0),
        (make_batch(2, 66, 9, "cyclic", count=4), 66, 66),  # scattered
        (around(window(7)), 12, 12),  # they, whose donors they are, and to whom they give
    ],
    ids=["window", "past_the_end", "near", "exhaustive", "scattered", "out_of_range"],
)
def test_what_a_band_leaves_to_the_exact_kernels(x, rows, donors, monkeypatch):
    monkeypatch.setenv("MCR_EMULATED_kSmallRows", "0")
    check(x, subsets="single")
    left = [marks.view(2, 66).amax(0).sum() for marks in library.left()]
    assert left[0] <= rows
    assert left[1] <= donors
    assert (left[0] > 0) == (rows > 0)


@pytest.mark.parametrize("loss", [nt_xent, sup_con])
@pytest.mark.parametrize(("count", "size"), [(2, 11), (3, 11), (9, 11), (3, 0)])
def test_labels_and_presence_of_all_modalities(count, size, loss):
    """Read where they are, row by row of each modality, and not repeated first."""
    g = torch.Generator().manual_seed(count)
    parts = [torch.randn(size, 20, generator=g) for _ in range(count)]
    labels, present = torch.arange(size) % 4, torch.rand(size, count, generator=g) < 0.7
    for there in (None, present):
        rows = torch.cat(parts), labels.repeat(count), None if there is None else there.T.flatten()
        found = value_and_gradient(loss, parts, labels, there)
        assert_same_bits(found, value_and_gradient(loss, *rows))


@pytest.mark.parametrize("op", ["nt_xent", "sup_con"])
@pytest.mark.parametrize("shape", [(1025, 3), (4, 4097), (4, 0)])
def test_what_is_not_small_is_refused(op, shape):
    """Python asks another backend for these (mcr_fast/ops/_limits.py); the kernels are not run."""
    forward = getattr(torch.ops.mcr_fast, f"{op}_fwd").default
    with pytest.raises(RuntimeError, match="take 8 modalities, 1024 rows and 1 to 4096 columns"):
        forward(torch.ones(shape), torch.zeros(shape[0], dtype=torch.int64), None, 0.5, True)


def test_a_gpu_without_the_memory_of_a_band_is_refused(monkeypatch):
    """Before any work: its kernels could not be launched."""
    monkeypatch.setenv("MCR_EMULATED_SHARED_BYTES", str(99 << 10))
    x = make_batch(2, 300, 5, "exhaustive")
    with pytest.raises(RuntimeError, match="a GPU whose blocks may have 125440 bytes of shared"):
        check(x)


def value_and_gradient(loss, embeddings, labels, present):
    """Of M tensors the gradient that one would have."""
    leaves = [embeddings] if isinstance(embeddings, torch.Tensor) else embeddings
    leaves = [x.clone().requires_grad_() for x in leaves]
    given = leaves[0] if isinstance(embeddings, torch.Tensor) else leaves
    value = loss(given, labels, present=present, backend="cpu")
    return value.detach(), torch.cat(torch.autograd.grad(value, leaves))
