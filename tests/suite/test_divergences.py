"""What the two divergences show in no case of the suite: of the reference, and of launchers."""

import itertools
import math

import pytest
import torch
from contrastive import needs_library
from divergences import assert_same_bits, call, make_batch, make_rows, run
from oracle import DEFINITIONS, Oracle
from tiers import sample

from mcr_fast._names import DIVERGENCES

EXCLUDE = ("none", "self", "same_label")


@pytest.mark.parametrize("divergence", sample(DIVERGENCES, 3))
def test_reference_of_pairs_is_the_definition(divergence):
    x = make_batch(3, 4, 3, "table", own=True, present=True, weighted=True, dtype=torch.float64)
    latents = [a.requires_grad_() for a in x.contributions]
    bias = x.bias.requires_grad_()
    for exclude in EXCLUDE:
        oracle = Oracle(
            lambda z: sum(z) + bias,
            latents,
            [(bias, None)],
            x.donors,
            divergence=divergence,
            exclude=exclude,
            labels=x.labels,
            present=x.present,
            sample_weight=x.sample_weight,
        )
        for strategy, clean_path in itertools.product(
            ("greedy", "independent", "collaborative"), ("shared", "routed", "detached")
        ):
            options = {"strategy": strategy, "clean_path": clean_path, "exclude": exclude}
            value, *grads = run(x, "reference", divergence=divergence, **options)
            wanted = [-g for g in oracle.gradients(strategy, clean_path)]
            torch.testing.assert_close(value, oracle.divergences(), rtol=1e-9, atol=1e-14)
            torch.testing.assert_close(grads[0], torch.stack(wanted[:-1]), rtol=1e-9, atol=1e-14)
            torch.testing.assert_close(grads[1], wanted[-1], rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("weighted", [False, True])
def test_reference_of_rows_is_the_definition(divergence, weighted):
    x = make_rows(9, 4, 5, weighted=weighted, dtype=torch.float64)
    weights = x.row_weight.tolist() if weighted else [1.0] * 9
    terms = [
        weight * DEFINITIONS[divergence](x.clean[i], w).item()
        for weight, i, w in zip(weights, x.rows, x.perturbed, strict=True)
    ]
    value, *_ = run(x, "reference", divergence=divergence)
    assert value.item() == pytest.approx(math.fsum(terms) / math.fsum(weights), rel=1e-12)


@needs_library
def test_more_than_eight_modalities():
    x = make_batch(9, 6, 4, count=2)
    assert_same_bits([call(x, None, subsets="single")], [call(x, "reference", subsets="single")])
    message = "backend='cpu' of permuted_divergence takes at most 8 modalities, got 9"
    with pytest.raises(ValueError, match=message):
        call(x, "cpu", subsets="single")
