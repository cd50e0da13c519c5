"""torch.compile: few graphs whatever the batch sizes, and what eager mode gives."""

import itertools

import pytest
import torch
from tiers import sample
from torch import nn
from torch._dynamo.backends.debugging import aot_eager
from torch.nn.functional import cross_entropy

import mcr_fast

D, C = 8, 5
SIZES = (32, 31, 30, 29, 17, 40, 64, 50, 9, 8, 7, 33, 65, 48, 12, 20, 21, 22, 23, 24)
SHORT = (32, 31, 17, 7)


def layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2 * D, 7), nn.Tanh(), nn.Linear(7, C))


def called():
    net = layers()
    return lambda latents: net(torch.cat(latents, 1))


FUSIONS = {
    "linear": lambda: nn.Linear(2 * D, C),
    "additive": lambda: mcr_fast.AdditiveFusion([nn.Linear(D, C), nn.Linear(D, C)]),
    "head": lambda: mcr_fast.AdditiveFusion.from_sequential(layers(), [D, D]),
    "called": called,
}


def held(fusion, sizes, dynamic=None, backend=None, **options) -> int:
    """Steps of these sizes, compiled, give what they give in eager mode; the graphs it took."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    mcr = mcr_fast.MCRLoss([D, D], C, num_permutations=4, **options)

    def step(first, second, labels):
        out = mcr([first, second], labels, fusion=fusion)
        return out.loss + cross_entropy(out.logits, labels), out.importance

    torch._dynamo.reset()
    compiled = torch.compile(step, dynamic=dynamic, **backend or {"backend": count})
    for rows in sizes:
        latents = [torch.randn(rows, D, requires_grad=True) for _ in range(2)]
        results = []
        for run in (step, compiled):
            torch.manual_seed(rows)
            loss, importance = run(*latents, torch.arange(rows) % C)
            results.append((loss, importance, *torch.autograd.grad(loss, latents)))
        for ours, expected in zip(*reversed(results), strict=True):
            torch.testing.assert_close(ours, expected, equal_nan=rows == 0)
    return len(graphs)


@pytest.mark.parametrize(
    ("kind", "sizes", "dynamic", "scheme"),
    sample(itertools.product(FUSIONS, [SHORT], [None, True], ["cyclic", "uniform"]), 4)
    + [
        pytest.param(kind, SIZES, *options, marks=pytest.mark.slow)
        for kind in FUSIONS
        for options in ((None, "uniform"), (True, "cyclic"))
    ],
)
def test_one_graph_of_one_size_and_one_of_all_others(kind, sizes, dynamic, scheme):
    # a fusion that is run breaks the graph once: what is before it, and what is after it
    most = 2 if kind in ("linear", "additive") else 4
    assert held(FUSIONS[kind](), sizes, dynamic, scheme=scheme) <= most


@pytest.mark.parametrize("kind", sample(FUSIONS, 2))
def test_last_batches_of_one_row_and_of_none(kind):
    """A compiler makes graphs of their own for sizes of 1 and 0."""
    assert held(FUSIONS[kind](), (32, 31, 1, 0, 30, 1, 0)) <= 8


GAME = list(
    itertools.product(
        ("greedy", "independent", "collaborative"), ("shared", "routed", "detached"), FUSIONS
    )
)


@pytest.mark.parametrize(("strategy", "clean_path", "kind"), sample(GAME, 7))
def test_every_game_is_that_of_eager_mode(strategy, clean_path, kind):
    held(FUSIONS[kind](), (9,), strategy=strategy, clean_path=clean_path)


@pytest.mark.parametrize("perturbation", ["zero", "noise"])
@pytest.mark.parametrize("kind", ["linear", "head"])
def test_other_perturbations(perturbation, kind):
    held(FUSIONS[kind](), (9, 8), perturbation=perturbation)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"mode": "reduce-overhead"}, {"mode": "max-autotune"}, {"backend": "inductor"}]
)
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiled_to_machine_code(options, dynamic):
    from torch._inductor import config

    with config.patch(fallback_random=True):  # eager mode's draws
        held(FUSIONS["linear"](), (32, 31, 17), dynamic, backend=options)
