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


def drawn(**options):
    g = generator(6)
    return mcr_fast.sample_permutations(options.pop("count", 3), ROWS, generator=g, **options)


UNIFORM = {"permutations": drawn(scheme="uniform", num_modalities=3)}
LABELS = torch.tensor([0, 1, 1, 2, 0])
WEIGHT = torch.tensor([1.0, 0.0, 2.0, 0.5, 3.0], dtype=torch.float64)
MASKED = {"present": make_present(9, ROWS, 3), "sample_weight": WEIGHT}
DEFAULTS = {
    "num_modalities": 3,
    "routing": ("greedy", "routed"),
    "chunks": (None, 3),
    "permutations": None,
    "labels": None,
    "subsets": "all",
}
OPTIONS = {
    "exhaustive": {"num_modalities": 2},
    "single subsets": {"subsets": "single"},
    "chunks": {"num_modalities": 2, "chunks": (1, 2, 3, 5, 7, 10, 11, 1000)},
    "uniform table": {"permutations": drawn(scheme="uniform")},
    "uniform table, own donors": UNIFORM,
    "exclude self": UNIFORM | {"exclude": "self"},
    "exclude same label": UNIFORM | {"exclude": "same_label", "labels": LABELS},
    "missing and weighted, greedy": MASKED | {"routing": ("greedy", "shared")},
    "missing and weighted, independent": MASKED | {"routing": ("independent", "routed")},
    **{name: {"num_modalities": 2, "divergence": name} for name in DIVERGENCES[1:]},
    **{
        f"own donors, {strategy}": {
            "permutations": drawn(count=2, num_modalities=3),
            "routing": (strategy, clean_path),
        }
        for strategy, clean_path in zip(STRATEGIES, CLEAN_PATHS, strict=True)
    },
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("kind", ["linear", "additive_head", "gated"])
def test_options(kind, name):
    """One routing of one fusion; options of MCRLoss, of its forward and of the oracle."""
    given = DEFAULTS | OPTIONS[name]
    num_modalities, routing, chunks, permutations, labels, subsets = map(given.pop, DEFAULTS)
    case = make_fusion(kind, 4, num_modalities)
    latents = make_latents(5, num_modalities, ROWS)
    rows = torch.arange(ROWS)
    table = torch.stack([(rows + shift) % ROWS for shift in range(1, ROWS)])
    if permutations is not None:
        table = permutations if isinstance(permutations, torch.Tensor) else permutations.index()
    oracle = Oracle(case.oracle, latents, case.owned, table, subsets, labels=labels, **given)
    data = {k: given.pop(k) for k in MASKED if k in given}
    options = {"subsets": subsets, "strategy": routing[0], "clean_path": routing[1], **given}
    for chunk_rows in chunks:
        loss = mcr(num_modalities, num_permutations="all", chunk_rows=chunk_rows, **options)
        loss_of = lambda z, _, loss=loss, **rest: loss(z, labels, **rest)  # noqa: E731
        compare(loss_of, case, latents, oracle, routing, permutations=permutations, **data)
