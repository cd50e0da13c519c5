"""Who gets which gradient: MCRLoss against the loop-by-loop oracle, for every kind of fusion."""

import itertools

import pytest
import torch
from called import ROWS, mcr
from inputs import FUSIONS, generator, make_fusion, make_latents, make_present
from oracle import Oracle

import mcr_fast
from mcr_fast._names import CLEAN_PATHS, DIVERGENCES, STRATEGIES


def compare(loss, case, latents, oracle, routing, rtol=1e-9, **arguments):
    tensors = [*latents, *case.fusion.parameters()]
    for x in tensors:
        x.grad = None
    out = loss(latents, None, fusion=case.fusion, **arguments)
    torch.testing.assert_close(out.divergences, oracle.divergences(), rtol=rtol, atol=1e-12)
    torch.testing.assert_close(out.mipd, -oracle.divergences().sum(), rtol=rtol, atol=1e-12)
    out.mipd.backward()
    ours = [z.grad for z in latents] + case.read()
    wanted = oracle.gradients(*routing)
    torch.testing.assert_close(ours, wanted, rtol=rtol, atol=1e-12, msg=lambda m: f"{routing}: {m}")


@pytest.mark.parametrize("backend", ["reference", None])
@pytest.mark.parametrize("num_modalities", [2, 3])
@pytest.mark.parametrize("kind", FUSIONS)
def test_all_strategies_and_clean_paths(kind, num_modalities, backend):
    case = make_fusion(kind, 1, num_modalities)
    latents = make_latents(2, num_modalities, ROWS, length=case.length)
    sample = mcr_fast.sample_permutations(2, ROWS, generator=generator(3))
    oracle = Oracle(case.oracle, latents, case.owned, sample.index())
    for routing in itertools.product(STRATEGIES, CLEAN_PATHS):
        strategy, clean_path = routing
        loss = mcr(num_modalities, strategy=strategy, clean_path=clean_path, backend=backend)
        compare(loss, case, latents, oracle, routing, permutations=sample)


# Each option once, on fusions that take the three different ways through the package

WAYS = ("linear", "additive_head", "gated")


def check(kind, num_modalities, permutations, *, routing=("greedy", "routed"), length=0, **options):
    """One routing of one fusion; `options` of MCRLoss, of its forward and of the oracle."""
    case = make_fusion(kind, 4, num_modalities)
    latents = make_latents(5, num_modalities, ROWS, length=case.length)
    shared = {k: v for k, v in options.items() if k in ("divergence", "exclude")}
    data = {k: v for k, v in options.items() if k in ("present", "sample_weight")}
    labels = options.get("labels")
    table = exhaustive_table() if permutations is None else permutations
    table = table if isinstance(table, torch.Tensor) else table.index()
    subsets = options.get("subsets", "all")
    oracle = Oracle(
        case.oracle, latents, case.owned, table, subsets, labels=labels, **shared, **data
    )
    for chunk_rows in options.get("chunks", (None, 3)):
        loss = mcr(
            num_modalities,
            strategy=routing[0],
            clean_path=routing[1],
            subsets=subsets,
            chunk_rows=chunk_rows,
            num_permutations="all",
            **shared,
        )
        loss_of = lambda z, _, loss=loss, **rest: loss(z, labels, **rest)  # noqa: E731
        compare(loss_of, case, latents, oracle, routing, permutations=permutations, **data)


def exhaustive_table():
    rows = torch.arange(ROWS)
    return torch.stack([(rows + shift) % ROWS for shift in range(1, ROWS)])


@pytest.mark.parametrize("routing", list(zip(STRATEGIES, CLEAN_PATHS, strict=True)), ids="-".join)
@pytest.mark.parametrize("kind", WAYS)
def test_own_donors(kind, routing):
    sample = mcr_fast.sample_permutations(2, ROWS, num_modalities=3, generator=generator(6))
    check(kind, 3, sample, routing=routing)


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("num_modalities", [None, 3])
def test_uniform_table(kind, num_modalities):
    table = mcr_fast.sample_permutations(
        3, ROWS, scheme="uniform", num_modalities=num_modalities, generator=generator(7)
    )
    check(kind, 3, table)


@pytest.mark.parametrize("kind", WAYS)
def test_exhaustive(kind):
    check(kind, 2, None)


@pytest.mark.parametrize("kind", WAYS)
def test_single_subsets(kind):
    check(kind, 3, None, subsets="single")


@pytest.mark.parametrize("divergence", DIVERGENCES[1:])
@pytest.mark.parametrize("kind", WAYS)
def test_divergences(kind, divergence):
    check(kind, 2, None, divergence=divergence)


@pytest.mark.parametrize("exclude", ["self", "same_label"])
@pytest.mark.parametrize("kind", WAYS)
def test_exclude(kind, exclude):
    table = mcr_fast.sample_permutations(
        3, ROWS, scheme="uniform", num_modalities=3, generator=generator(8)
    )
    check(kind, 3, table, exclude=exclude, labels=torch.tensor([0, 1, 1, 2, 0]))


@pytest.mark.parametrize("kind", WAYS)
def test_missing_modalities_and_weights(kind):
    present = make_present(9, ROWS, 3)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0], dtype=torch.float64)
    check(kind, 3, None, present=present, sample_weight=weight, routing=("greedy", "shared"))
    check(kind, 3, None, present=present, sample_weight=weight, routing=("independent", "routed"))


@pytest.mark.parametrize("kind", WAYS)
def test_chunks(kind):
    check(kind, 2, None, chunks=(1, 2, 3, 5, 7, 10, 11, 1000))
