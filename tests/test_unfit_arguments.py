"""Arguments that are no dense tensor of one dtype: each is named, with what to pass instead."""

import re

import pytest
import torch

from mcr_fast import functional as F
from mcr_fast.functional import contrastive
from mcr_fast.sampling import CyclicPermutations

M, N, C, K, D = 2, 4, 3, 2, 5


class DTensor(torch.Tensor):
    """Known by its name: the package does not import torch.distributed."""


def x(*shape):
    return torch.ones(*shape)


A = x(M, N, C)
ROWS = torch.arange(N)
LABELS = torch.tensor([0, 1, 2, 0])
LATENTS = [x(N, D), x(N, D)]


def cyclic(order=ROWS, shifts=ROWS[1:3]):
    return CyclicPermutations(order, shifts)


# Every argument that is a tensor, and a call that passes it on: (shape, name in the error, call).
SLOTS = {
    "contributions": ((M, N, C), "contributions", lambda v: F.permuted_divergence(v)),
    "contribution": ((N, C), "contributions[1]", lambda v: F.permuted_divergence([x(N, C), v])),
    "permutations": ((K, N), "permutations", lambda v: F.permuted_divergence(A, v)),
    "order": (
        (N,),
        "permutations.order",
        lambda v: F.permuted_divergence(A, cyclic(order=v)),
    ),
    "shifts": ((K,), "permutations.shifts", lambda v: F.permuted_divergence(A, cyclic(shifts=v))),
    "bias": ((C,), "bias", lambda v: F.permuted_divergence(A, bias=v)),
    "labels": ((N,), "labels", lambda v: F.permuted_divergence(A, labels=v)),
    "present": ((N, M), "present", lambda v: F.permuted_divergence(A, present=v)),
    "sample_weight": ((N,), "sample_weight", lambda v: F.permuted_divergence(A, sample_weight=v)),
    "latents": (
        (N, D),
        "latents[0]",
        lambda v: F.linear_permuted_divergence([v, x(N, D)], x(C, 2 * D)),
    ),
    "weight": ((C, 2 * D), "weight", lambda v: F.linear_permuted_divergence(LATENTS, v)),
    "perturbed": ((N, C), "perturbed", lambda v: F.row_divergence(v, x(N, C), ROWS)),
    "clean": ((N, C), "clean", lambda v: F.row_divergence(x(N, C), v, ROWS)),
    "rows": ((N,), "rows", lambda v: F.row_divergence(x(N, C), x(N, C), v)),
    "row_weight": (
        (N,),
        "row_weight",
        lambda v: F.row_divergence(x(N, C), x(N, C), ROWS, row_weight=v),
    ),
    "embedding": ((N, D), "embeddings[1]", lambda v: F.nt_xent([x(N, D), v])),
    "embeddings": ((N, D), "embeddings", lambda v: F.sup_con(v, LABELS)),
    "embedding_labels": ((N,), "labels", lambda v: F.nt_xent(LATENTS, v)),
    "embedding_present": ((N, M), "present", lambda v: F.sup_con(LATENTS, present=v)),
    "target": ((N, D), "latents[1]", lambda v: F.reconstruction_loss([x(N, D), v], x(N, 2 * D))),
    "reconstruction": (
        (N, 2 * D),
        "reconstruction",
        lambda v: F.reconstruction_loss(LATENTS, v),
    ),
}


def nested(*shape):
    return torch.nested.nested_tensor([x(2, 2), x(3, 2)])


# What is no dense tensor of numbers, and the way out that the error names.
UNFIT = {
    "number": (lambda *shape: 1.5, "must be a"),
    "string": (lambda *shape: "abc", "must be a"),
    "dict": (lambda *shape: {}, "must be a"),
    "sparse": (lambda *shape: x(*shape).to_sparse(), "pass x.to_dense()"),
    "nested": (nested, "to_padded_tensor"),
    "jagged": (
        lambda *shape: torch.nested.nested_tensor([x(2, 2), x(3, 2)], layout=torch.jagged),
        "to_padded_tensor",
    ),
    "quantized": (
        lambda *shape: torch.quantize_per_tensor(x(*shape), 1.0, 0, torch.quint8),
        "pass x.dequantize()",
    ),
    "dtensor": (lambda *shape: x(*shape).as_subclass(DTensor), "x.to_local() or x.full_tensor()"),
    "dtensor_subclass": (
        lambda *shape: x(*shape).as_subclass(type("Sharded", (DTensor,), {})),
        "x.to_local() or x.full_tensor()",
    ),
    "masked": (
        lambda *shape: torch.masked.masked_tensor(x(*shape), x(*shape).bool()),
        "x.get_data()",
    ),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch's, of its prototypes
@pytest.mark.parametrize("unfit", UNFIT)
@pytest.mark.parametrize("slot", SLOTS)
def test_unfit_argument_is_named_with_the_way_out(slot, unfit):
    shape, name, call = SLOTS[slot]
    make, way_out = UNFIT[unfit]
    with pytest.raises(TypeError, match=re.escape(f"{name} must")) as raised:
        call(make(*shape))
    assert way_out in str(raised.value)


def test_every_function_has_a_slot():
    called = {name for _, _, call in SLOTS.values() for name in call.__code__.co_names}
    assert set(F.__all__) <= called


MIXED = {
    "embeddings": lambda a, b: F.nt_xent([a, b]),
    "sup_con": lambda a, b: F.sup_con([a, b]),
    "contributions": lambda a, b: F.permuted_divergence([a, b]),
    "latents": lambda a, b: F.linear_permuted_divergence([b, a], x(C, 2 * D)),
}


@pytest.mark.parametrize("name", MIXED)
def test_mixed_dtypes_name_the_one_that_differs(name):
    """Outside of autocast an error, inside the widest dtype, as torch's own operations have it."""
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, N, D, generator=g).unbind()
    narrow = b.to(torch.bfloat16)
    argument = "embeddings" if name == "sup_con" else name
    with pytest.raises(TypeError, match=re.escape(f"{argument}[1] must be torch.")) as raised:
        MIXED[name](narrow, a)
    assert ".float()" in str(raised.value)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = MIXED[name](narrow, a)
    torch.testing.assert_close(mixed, MIXED[name](narrow.float(), a))


def test_embeddings_are_called_what_the_caller_calls_them():
    for loss in ("nt_xent", "sup_con"):
        with pytest.raises(TypeError, match=re.escape("latents[1] must be torch.float32 like lat")):
            contrastive(loss, [x(N, D), x(N, D).half()], None, 0.5, None, None, "latents")
