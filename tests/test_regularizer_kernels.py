"""The regularizer's op on the GPU backends: what the terms one by one give in float64."""

import copy
from unittest import mock

import pytest
import torch
from tiers import sample
from torch import nn
from torch.nn.functional import cross_entropy

import mcr_fast
from mcr_fast.kernels import config
from mcr_fast.ops.regularizer import regularizer

BACKENDS = [
    pytest.param("triton", marks=pytest.mark.process("interpreted"), id="triton"),
    pytest.param("cpu", marks=pytest.mark.process("emulated"), id="cuda"),  # what stands in for it
]
D, C = 5, 3
CASES = [
    *((rows, 2, {}, False) for rows in (4, 0, 1, 2)),
    (0, 3, {}, True),
    (4, 3, {"strategy": "independent", "contrastive": "sup_con", "exclude": "self"}, True),
    (7, 2, {"clean_path": "routed", "contrastive_weight": 0.3, "ceb_weight": 0.5}, False),
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "modalities", "options", "masked"), sample(CASES, 5))
def test_is_the_terms_one_by_one(backend, rows, modalities, options, masked):
    hold(backend, rows, modalities, options, masked)


@pytest.mark.process("interpreted")
@pytest.mark.parametrize(("rows", "modalities", "options", "masked"), sample(CASES, 2))
def test_a_large_contrastive_batch(rows, modalities, options, masked, monkeypatch):
    monkeypatch.setattr(config, "SMALL_CONTRASTIVE", (0, 0))
    hold("triton", rows, modalities, options, masked)


@pytest.mark.process("emulated")
@pytest.mark.parametrize(("rows", "modalities", "options", "masked"), CASES)
def test_a_librarys_products(rows, modalities, options, masked, monkeypatch):
    monkeypatch.setenv("MCR_EMULATED_kMaxOwnProduct", "-1")
    hold("cpu", rows, modalities, options, masked)


@pytest.mark.process("emulated")
@pytest.mark.parametrize("most", ["-1", str(1 << 23)], ids=["library", "own"])
def test_more_rows_than_the_threads_that_add_up_the_bias(most, monkeypatch):
    monkeypatch.setenv("MCR_EMULATED_kMaxOwnProduct", most)
    hold("cpu", 270, 2, {}, False)


def hold(backend, rows, modalities, options, masked):
    torch.manual_seed(rows)
    latents = [torch.randn(rows, D, requires_grad=True) for _ in range(modalities)]
    fusion, labels = nn.Linear(modalities * D, C, bias=not masked), torch.arange(rows) % 2
    mcr = mcr_fast.MCRLoss([D] * modalities, C, num_permutations=2, backend=backend, **options)
    present = torch.rand(rows, modalities) < 0.8 if masked else None
    donors = mcr_fast.sample_permutations(2, rows, scheme="uniform")
    given = {"present": present, "permutations": donors if rows > 1 else None}

    with mock.patch("mcr_fast.mipd.evaluate.regularizer", side_effect=regularizer) as op:
        out = mcr(latents, labels, fusion=fusion, **given)
    assert op.called
    wide, truth_of = [z.detach().double().requires_grad_() for z in latents], copy.deepcopy(mcr)
    truth_of.backend, exact = "reference", copy.deepcopy(fusion).double()
    truth = truth_of.double()(wide, labels, fusion=exact, **given)
    for ours, expected in zip(out, truth, strict=True):
        torch.testing.assert_close(ours, expected.to(ours), rtol=1e-4, atol=1e-6)

    for loss in (
        lambda out: out.loss + cross_entropy(out.logits, labels, reduction="sum"),
        lambda out: 2 * out.mipd + 0.3 * out.contrastive,
        lambda out: out.logits.square().sum(),
    ):
        results = [
            torch.autograd.grad(
                loss(o), [*z, *f.parameters()], retain_graph=True, materialize_grads=True
            )
            for o, z, f in ((out, latents, fusion), (truth, wide, exact))
        ]
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected.to(ours), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_is_wanted_gets_a_gradient(backend):
    """The product of all latents' gradients is for when all are wanted."""
    torch.manual_seed(0)
    latents = [torch.randn(4, D, requires_grad=True) for _ in range(2)]
    fusion = nn.Linear(2 * D, C)
    mcr = mcr_fast.MCRLoss([D] * 2, C, num_permutations="all", backend=backend)
    leaves = [*latents, *fusion.parameters()]
    everything = torch.autograd.grad(mcr(latents, None, fusion=fusion).loss, leaves)
    for left_out in (0, 2):
        wanted = [leaf for at, leaf in enumerate(leaves) if at != left_out]
        leaves[left_out].requires_grad_(False)
        grads = torch.autograd.grad(mcr(latents, None, fusion=fusion).loss, wanted)
        leaves[left_out].requires_grad_(True)
        expected = [grad for at, grad in enumerate(everything) if at != left_out]
        torch.testing.assert_close(list(grads), expected)
