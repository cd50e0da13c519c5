"""The regularizer's op on the GPU backends: what the terms one by one give in float64."""

import copy
from unittest import mock

import pytest
import torch
from regularizer import LINEAR_CASES, LINEAR_LOSSES, LinearStep
from tiers import sample

from mcr_fast.kernels import config
from mcr_fast.ops.regularizer import regularizer

BACKENDS = [
    pytest.param("triton", marks=pytest.mark.process("interpreted"), id="triton"),
    pytest.param("cpu", marks=pytest.mark.process("emulated"), id="cuda"),  # what stands in for it
]


# L_CEB has no CUDA C++ kernel
OF_CUDA = [case for case in LINEAR_CASES if "ceb_weight" not in case[2]]


@pytest.mark.process("interpreted")
@pytest.mark.parametrize(("rows", "modalities", "options", "masked"), sample(LINEAR_CASES, 5))
def test_triton_is_the_terms_one_by_one(rows, modalities, options, masked):
    hold("triton", rows, modalities, options, masked)


@pytest.mark.process("emulated")
@pytest.mark.parametrize(("rows", "modalities", "options", "masked"), sample(OF_CUDA, 5))
def test_cuda_is_the_terms_one_by_one(rows, modalities, options, masked):
    hold("cpu", rows, modalities, options, masked)


@pytest.mark.process("interpreted")
@pytest.mark.parametrize(("rows", "modalities", "options", "masked"), sample(LINEAR_CASES, 2))
def test_a_large_contrastive_batch(rows, modalities, options, masked, monkeypatch):
    monkeypatch.setattr(config, "SMALL_CONTRASTIVE", (0, 0))
    hold("triton", rows, modalities, options, masked)


@pytest.mark.process("emulated")
@pytest.mark.parametrize(("rows", "modalities", "options", "masked"), OF_CUDA)
def test_a_librarys_products(rows, modalities, options, masked, monkeypatch):
    monkeypatch.setenv("MCR_EMULATED_kMaxOwnProduct", "-1")
    hold("cpu", rows, modalities, options, masked)


@pytest.mark.process("emulated")
@pytest.mark.parametrize("most", ["-1", str(1 << 23)], ids=["library", "own"])
def test_more_rows_than_the_threads_that_add_up_the_bias(most, monkeypatch):
    monkeypatch.setenv("MCR_EMULATED_kMaxOwnProduct", most)
    hold("cpu", 270, 2, {}, False, scheme="cyclic")  # a table of so many is Triton's


def hold(backend, rows, modalities, options, masked, scheme="uniform"):
    step = LinearStep(backend, rows, modalities, options, masked, scheme)
    with mock.patch("mcr_fast.mipd.evaluate.regularizer", side_effect=regularizer) as op:
        out = step.run()
    assert op.called
    exact = copy.deepcopy(step)
    exact.latents = [z.detach().double().requires_grad_() for z in step.latents]
    exact.mcr.backend, exact.fusion = "reference", exact.fusion.double()
    exact.mcr.double()
    truth = exact.run()
    for name, ours, expected in zip(out._fields, out, truth, strict=True):
        if name == "importance" and truth.divergences.sum() < 1e-10:
            continue  # shares of nothing but roundings
        torch.testing.assert_close(ours, expected.to(ours), rtol=1e-4, atol=1e-6)

    for loss in LINEAR_LOSSES:
        results = [
            torch.autograd.grad(
                loss(o, step.labels), of.leaves(), retain_graph=True, materialize_grads=True
            )
            for o, of in ((out, step), (truth, exact))
        ]
        for ours, expected in zip(*results, strict=True):
            torch.testing.assert_close(ours, expected.to(ours), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_only_what_is_wanted_gets_a_gradient(backend):
    """The product of all latents' gradients is for when all are wanted."""
    step = LinearStep(backend, 4, 2, {"num_permutations": "all"}, False)
    step.given = {}
    leaves = step.leaves()
    everything = torch.autograd.grad(step.run().loss, leaves)
    for left_out in (0, 2):
        wanted = [leaf for at, leaf in enumerate(leaves) if at != left_out]
        leaves[left_out].requires_grad_(False)
        grads = torch.autograd.grad(step.run().loss, wanted)
        leaves[left_out].requires_grad_(True)
        expected = [grad for at, grad in enumerate(everything) if at != left_out]
        torch.testing.assert_close(list(grads), expected)
