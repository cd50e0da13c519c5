"""gather_add, which is no op: a whole step of `MCRLoss` of an additive fusion with a head.

M modalities of N rows of width D, H hidden units, C classes, K permutations. What is inside of the
launchers, tests/interpreted/test_triton_gather_add.py has.
"""

from collections.abc import Iterator
from itertools import product

import pytest
import torch

from mcr_fast import sample_permutations
from suite import behaviour, checks
from suite.backends import Backend
from suite.cases import Case, named
from suite.checks import bound
from suite.subjects import ACTIVATIONS, FusionStep

SHARED, OWN = False, True


def runs_the_kernel(subject: FusionStep, on: Backend) -> None:
    """The perturbed hidden rows come from it: no other check passes on the eager way."""
    from mcr_fast.kernels import gather_add as kernels

    found, forward = [], kernels.gather_add_fwd

    def counted(*inputs):
        found.append(inputs[-2])
        return forward(*inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, "gather_add_fwd", counted)
        subject.run("reference", subject.upstream())
        assert not found
        subject.run(on.argument, subject.upstream())
    wanted = {subject.activation} if on.argument == "triton" else set()
    assert set(found) == wanted


def case(
    what: str,
    shape: tuple[int, int, int, int, int, int],  # M, N, D, H, C, K
    activation: str = "gelu",
    donors: tuple[str, bool] = ("uniform", SHARED),
    *,
    present: bool = False,
    options: dict | None = None,  # of MCRLoss
    **rest,  # of the case
) -> Case:
    """A case named by what it is made of."""
    m, n, d, h, c, k = shape
    scheme, own = donors
    options = {} if options is None else options

    def make() -> FusionStep:
        g = torch.Generator().manual_seed(0)

        def normal(*size: int) -> torch.Tensor:
            return torch.randn(size, generator=g) / size[-1] ** 0.5

        latents = [torch.randn(n, d, generator=g) for _ in range(m)]
        weights = [*(normal(h, d) for _ in range(m)), normal(h), 2 * normal(c, h), normal(c)]
        drawn = {"scheme": scheme, "num_modalities": m if own else None, "generator": g}
        sample = sample_permutations(k, n, **drawn)
        table = [sample] if torch.is_tensor(sample) else [sample.order, sample.shifts]
        labels = torch.randint(3, (n,), generator=g)
        there = torch.rand(n, m, generator=g) > 0.25 if present else None
        return FusionStep(latents, weights, labels, table, there, activation, options)

    features = {"M": m, "N": n, "H": h, "K": k, "activation": activation, "donors": scheme}
    name = named(what=what, **features, own=own, present=present, **options)
    return Case("gather_add", name, make, work=m * n * k * h, backends=("triton",), **rest)


SMALL = (2, 7, 4, 6, 3, 2)


def cases() -> Iterator[Case]:
    yield case("quick", (3, 9, 5, 18, 4, 2), quick=True, thorough=True)
    shapes = [(2, 32, 8, 16, 6, 4), (3, 19, 5, 33, 7, 2), (2, 40, 16, 600, 11, 3)]
    for shape, activation in product(shapes, ACTIVATIONS):
        # 600 units are slow in the interpreter, and there for the launchers' own tests
        rest = {"interpreted": shape[3] < 600, "here": ("triton",)}
        yield case("shape", shape, activation, **rest)
    yield case("production", (2, 512, 512, 512, 174, 8), "relu", thorough=True)
    for strategy, clean_path, activation in product(
        ("greedy", "independent", "collaborative"), ("shared", "routed"), ACTIVATIONS
    ):
        options = {"strategy": strategy, "clean_path": clean_path, "contrastive_weight": 0.0}
        quick = (strategy, clean_path, activation) == ("independent", "routed", "relu")
        rest = {"options": options, "checks": (bound, runs_the_kernel), "quick": quick}
        yield case("routing", SMALL, activation, ("cyclic", OWN), **rest)
    # whole batches, parts of a permutation, and two permutations at a time
    for donors, chunk_rows in product((("uniform", OWN), ("cyclic", SHARED)), (None, 4, 14)):
        quick = donors[0] == "cyclic" and chunk_rows == 4
        rest = {"checks": (bound, runs_the_kernel)}
        rest["options"] = {"chunk_rows": chunk_rows, "contrastive_weight": 0.0}
        yield case("chunks", (3, 7, 4, 6, 3, 3), "relu", donors, quick=quick, **rest)
    rest = {"present": True, "checks": (bound, runs_the_kernel)}
    yield case("exhaustive", (2, 7, 4, 6, 3, 6), "gelu", ("cyclic", SHARED), **rest)
    yield case("bits", SMALL, checks=(behaviour.repeat, behaviour.dirty_memory), quick=("triton",))
    yield case("bad", (2, 4, 3, 4, 2, 1), checks=(checks.not_finite,), quick=("triton",))
