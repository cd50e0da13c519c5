"""The batches of the distributed contrastive losses, what ranks make of them, and the truth."""

import itertools
import math
import warnings
from typing import NamedTuple

import torch
import torch.distributed as dist
from inputs import generator
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from mcr_fast import functional

ROWS, WIDTH, FEATURES, CAPACITY = 4, 6, 5, 11
SIZES = {"even": (6, 6, 6, 6), "uneven": (9, 4, 5, 1), "empty": (7, 0, 6, 0)}
SCENARIOS = (*("even", "uneven", "empty", "present", "instance", "nan", "one_class", "distinct"),)
LOSSES = ("nt_xent", "sup_con")


class Case(NamedTuple):
    """A scenario, and how the loss is asked for."""

    scenario: str
    loss: str
    exchange: str
    rows: int | None
    dtype: torch.dtype

    def __str__(self):
        return "-".join(str(x).replace("torch.", "") for x in self)


AGREED = itertools.product(SCENARIOS, LOSSES, ("gather", "ring"), (None,), (torch.float64,))
# Capacities are the same code in both losses, float32 in both exchanges.
GIVEN = itertools.product(
    SCENARIOS, (("nt_xent", "ring"), ("sup_con", "gather")), (CAPACITY,), (torch.float64,)
)
SINGLE = itertools.product(
    SCENARIOS, (("nt_xent", "gather"), ("sup_con", "ring")), (None,), (torch.float32,)
)
CASES = [
    *(Case(*of) for of in AGREED),
    *(Case(scenario, *how, *rest) for scenario, how, *rest in (*GIVEN, *SINGLE)),
]


class Encoders(nn.Module):
    """Two modalities' embeddings."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(FEATURES, WIDTH), nn.Tanh()) for _ in range(2)
        )

    def forward(self, xs):
        return [layer(x) for layer, x in zip(self.layers, xs, strict=True)]


def encoders(dtype):
    torch.manual_seed(0)
    return Encoders().to(dtype)


def sizes_of(scenario, world):
    return SIZES.get(scenario, SIZES["uneven"])[:world]


def batch(scenario, world, dtype):
    """All ranks' rows: inputs of two modalities, labels, presence."""
    g, rows = generator(3), sum(sizes_of(scenario, world))
    xs = [torch.randn(rows, FEATURES, generator=g, dtype=torch.float64).to(dtype) for _ in range(2)]
    labels = torch.randint(4, (rows,), generator=g) * 10**12 - 7
    present = torch.rand(rows, 2, generator=g) > 0.3 if scenario == "present" else None
    if scenario == "instance":
        labels = None
    elif scenario == "nan":
        labels = labels.double()
        labels[::3] = math.nan
    elif scenario == "one_class":
        labels = torch.zeros_like(labels)
    elif scenario == "distinct":
        labels = torch.arange(rows)
    return xs, labels, present


def part(given, cut):
    xs, labels, present = given
    others = [None if x is None else x[cut] for x in (labels, present)]
    return [x[cut] for x in xs], *others


def cut_of(scenario, world, rank):
    sizes = sizes_of(scenario, world)
    return slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))


def truth(case, world):
    """Value and parameter gradients of one process on all rows."""
    model, (xs, labels, present) = encoders(case.dtype), batch(case.scenario, world, case.dtype)
    of_one = getattr(functional, case.loss)
    value = of_one(model(xs), labels, present=present, temperature=0.2, backend="reference")
    value.backward()
    return value.item(), [p.grad.tolist() for p in model.parameters()]


def of_rank(case, models, rank, world):
    """The same under DistributedDataParallel, of this rank's rows."""
    model = models[case.dtype]
    model.zero_grad()
    given = part(batch(case.scenario, world, case.dtype), cut_of(case.scenario, world, rank))
    how = {"process_group": dist.group.WORLD, "exchange": case.exchange, "rows": case.rows}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        of_all = getattr(functional, case.loss)
        value = of_all(model(given[0]), given[1], present=given[2], temperature=0.2, **how)
    value.backward()
    return value.item(), [p.grad.tolist() for p in model.parameters()]


def all_cases(rank, world):
    models = {
        dtype: DistributedDataParallel(encoders(dtype)) for dtype in (torch.float64, torch.float32)
    }
    return {case: of_rank(case, models, rank, world) for case in CASES}


def tensors(seed, rows=ROWS, width=WIDTH, dtype=torch.float32, modalities=2):
    g = generator(seed)
    of = [torch.randn(rows, width, generator=g).to(dtype) for _ in range(modalities)]
    return [x.requires_grad_() for x in of]


def of_group(x, labels=None, loss="nt_xent", **how):
    how = {"process_group": dist.group.WORLD} | how
    return getattr(functional, loss)(x, labels, **how)
