"""Launchers of Triton kernels, run up to the launch: kernels are compiled for a GPU, none starts.

What a GPU would compile, with its specialisation of 1, of multiples of 16 and of None: a kernel
that the interpreter runs can still be one that Triton does not compile. The results are zeros.
It runs in a process of its own, for the driver stays.
"""

from itertools import product

import pytest
import torch
import triton
from aot import Compiled
from tiers import sample
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from mcr_fast.kernels import config, nt_xent, reconstruction_loss, regularizer, sup_con
from mcr_fast.kernels.permuted_divergence import permuted_divergence_bwd, permuted_divergence_fwd
from mcr_fast.kernels.row_divergence import row_divergence_bwd, row_divergence_fwd

pytestmark = pytest.mark.process("launched")

M, N, C, K = 2, 32, 24, 3
SINGLE = [1, 2]


class FakeDriver:
    """One GPU of the Hopper generation that is never used."""

    def get_current_device(self):
        return 0

    def get_current_stream(self, device):
        return 0

    def get_current_target(self):
        return GPUTarget("cuda", 90, 32)


@pytest.fixture(autouse=True)
def compiled(monkeypatch):
    """The kernels that a test compiled."""
    kernels = []
    run = JITFunction.run

    def warm_up(self, *args, grid, warmup, **kwargs):
        kernels.append(run(self, *args, grid=grid, warmup=True, **kwargs))
        return kernels[-1]

    triton.runtime.driver.set_active(FakeDriver())
    monkeypatch.setattr(JITFunction, "run", warm_up)
    # launchers index with what their kernels would have written
    monkeypatch.setattr(torch, "empty", torch.zeros)
    monkeypatch.setattr(torch, "empty_like", torch.zeros_like)
    yield kernels
    names = [kernel.metadata.name for kernel in kernels]
    assert names, "the launcher started no kernel"
    for name, kernel in zip(names, kernels, strict=True):
        Compiled(name, 90, kernel.asm, kernel.metadata.shared).check()


def masks(exclude="none", present=False, weight=False):
    return {
        "labels": torch.arange(N) % 4 if exclude == "same_label" else None,
        "present": torch.rand(N, M) < 0.8 if present else None,
        "sample_weight": torch.rand(N) if weight else None,
        "exclude": exclude,
    }


def cyclic():
    return {"order": torch.randperm(N), "donors": torch.tensor([[1, 5, 7]])}


def table(own=1):
    return {"order": None, "donors": torch.rand(own, K, N).argsort(-1)}


EXHAUSTIVE = {"order": None, "donors": None}
CASES = {
    "self": {**cyclic(), **masks("self")},
    "same label": {**cyclic(), **masks("same_label")},
    "present": {**table(), **masks(present=True)},
    "weights": {**cyclic(), **masks(weight=True)},
    "own donors, every mask": {**table(M), **masks("same_label", present=True, weight=True)},
    "exhaustive, self": {**EXHAUSTIVE, **masks("self")},
    "one permutation": {"order": torch.randperm(N), "donors": torch.tensor([[4]]), **masks("self")},
}


@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("name", sample(CASES, 4))
def test_permuted_divergence(small, name, compiled, monkeypatch):
    if not small:
        monkeypatch.setattr(config, "SMALL_ROWS", 0)
    chosen = CASES[name]
    contributions = torch.randn(M, N, C)
    arguments = {
        "contributions": contributions,
        "bias": torch.randn(C),
        "subsets": SINGLE,
        **chosen,
    }
    arguments |= {"strategy": "greedy", "clean_path": "shared", "divergence": "jsd"}
    if name == "one permutation":
        permuted_divergence_fwd(**arguments, want_grad=False)
        # unequal upstream gradients: all of it again
        permuted_divergence_bwd(torch.rand(2), torch.randn(M, N, C), torch.randn(C), **arguments)
    permuted_divergence_fwd(**arguments, want_grad=True)
    names = {kernel.metadata.name for kernel in compiled}
    if small:
        assert names == {"_small_own_side_kernel", "_small_donor_side_kernel"}
        return
    assert {"_own_side_kernel", "_donor_side_kernel"} <= names
    assert ("_pair_weight_sums_kernel" in names) == (
        chosen["exclude"] != "none"
        or chosen["present"] is not None
        or chosen["sample_weight"] is not None
    )


@pytest.mark.slow
@pytest.mark.parametrize("small", [True, False])
def test_sixteen_bits_and_many_modalities(small, monkeypatch):
    if not small:
        monkeypatch.setattr(config, "SMALL_ROWS", 0)
    arguments = {"contributions": torch.randn(3, N, C).bfloat16(), "bias": None, **cyclic()}
    arguments |= masks("self") | {"subsets": [1, 2, 4, 3, 5, 6]}
    arguments |= {"strategy": "independent", "clean_path": "routed", "divergence": "binary_jsd"}
    permuted_divergence_fwd(**arguments, want_grad=True)


@pytest.mark.parametrize("weight", [None, torch.rand(2 * N)], ids=["plain", "weighted"])
@pytest.mark.parametrize("few", [True, False])
def test_row_divergence(weight, few, monkeypatch):
    if not few:
        monkeypatch.setattr(config, "FEW_ROWS", 0)
    rows, clean = torch.arange(2 * N) % N, torch.randn(N, C)
    made = row_divergence_fwd(torch.randn(2 * N, C), clean, rows, weight, "jsd", True, few)
    row_divergence_bwd(made[0], made[1] if few else None, *made[2:], torch.randn(2 * N, C), clean)
    row_divergence_fwd(clean[:1], clean[:1], rows[:1], None, "jsd", True, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "rows", "dtype", "temperature"),
    [(nt_xent, 4200, torch.bfloat16, 0.5), (sup_con, 70, torch.float32, 0.01)],
)
def test_contrastive(module, rows, dtype, temperature, compiled, monkeypatch):
    monkeypatch.setattr(config, "SMALL_CONTRASTIVE", (0, 0))
    name = module.__name__.split(".")[-1]
    x, labels = torch.randn(rows, 37).to(dtype), torch.arange(rows) % 9
    present = torch.arange(rows) % 5 > 0
    loss, grad = getattr(module, f"{name}_fwd")(x, labels, present, temperature, True)
    assert loss.shape == ()
    assert grad.shape == x.shape
    assert len({kernel.metadata.name for kernel in compiled}) == 9
    assert getattr(module, f"{name}_bwd")(loss, grad, dtype).dtype == dtype


@pytest.mark.parametrize(
    ("module", "dtype", "masked"),
    sample(product((nt_xent, sup_con), (torch.float32, torch.bfloat16), (True, False)), 5),
)
def test_small_contrastive(module, dtype, masked, compiled):
    present = torch.rand(N, M) < 0.8 if masked else None
    forward = getattr(module, module.__name__.split(".")[-1] + "_fwd")
    x, labels = torch.randn(M * N, 37).to(dtype), torch.arange(N) % 9
    for rows in (x, x.mT.contiguous().mT[:, 1:]):
        for want_grad in (False, True):
            _, grad = forward(rows, labels, present, 0.5, want_grad)
            assert grad.shape == (rows.shape if want_grad else (0, 0))
    names = [kernel.metadata.name for kernel in compiled]
    assert set(names) == {"_small_sums_kernel", "_small_gradient_kernel"}
    assert len(names) == 8


def test_reconstruction_loss(compiled):
    latents, h = [torch.randn(5, 3), torch.randn(5, 300)], torch.randn(5, 303)
    assert reconstruction_loss.reconstruction_loss_fwd(latents, h).shape == ()
    grads, grad_h = reconstruction_loss.reconstruction_loss_bwd(torch.ones(()), latents, h)
    assert [g.shape for g in (*grads, grad_h)] == [z.shape for z in (*latents, h)]
    assert len(compiled) == 3


GRADS = list(product((None, torch.ones(())), repeat=3))


@pytest.mark.parametrize("present", sample([None, torch.rand(N, M) < 0.8], 2))
def test_regularizer(present, compiled):
    latents, weight = [torch.randn(N, 16) for _ in range(M)], torch.randn(C, 16 * M)
    pairs = (torch.randn(C), None, None, None, present, None, SINGLE)
    options = ("greedy", "shared", "jsd", "none", torch.arange(N) % 4, "nt_xent", 0.5, 0.1, 1.0)
    made = regularizer.regularizer_fwd(latents, weight, *pairs, *options, True)
    assert [t.shape for t in made[:4]] == [(), (), (), (N, C)]
    del compiled[:]
    for grads in GRADS:  # each set of those that are None is a kernel of its own
        for grad_logits in (None, torch.randn(N, C)):
            rest = (*made[6:], 0.1, 1.0, [1, 1, 1], latents, weight)
            regularizer.regularizer_bwd(*grads, grad_logits, *rest)
    assert {kernel.metadata.name for kernel in compiled} == {"_scale_terms_kernel"}
