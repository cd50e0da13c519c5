"""Paths of the CUDA library that are not reached, or not seen, by what comes out in tests/suite."""

import pytest
import torch
from divergences import assert_same_bits, check, make_batch, paired_off

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
