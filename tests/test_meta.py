"""Shape-only runs: on the meta device and on fake tensors every loss gives shapes and dtypes."""

from contextlib import nullcontext

import pytest
import torch
from losses import LOSSES
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import mcr_fast
from mcr_fast import _checks
from mcr_fast import functional as F

N, D, C = 6, 4, 3


class Inputs:
    """Tensors without numbers, of one dtype, on one device."""

    def __init__(self, device, dtype):
        self.device, self.dtype = device, dtype
        self.labels = torch.zeros(N, dtype=torch.int64, device=device)
        self.present = torch.ones(N, 2, dtype=torch.bool, device=device)
        self.weight = torch.ones(N, device=device)
        self.table = torch.zeros(2, N, dtype=torch.int64, device=device)
        self.leaves = []

    def float(self, *shape):
        x = torch.empty(*shape, device=self.device, dtype=self.dtype, requires_grad=True)
        self.leaves.append(x)
        return x

    def pair(self, width=D):
        return [self.float(N, width) for _ in range(2)]


def divergence(i):
    # greedy has no gradient for the bias of two modalities
    masks = {"labels": i.labels, "present": i.present, "sample_weight": i.weight}
    masks["strategy"] = "independent"
    return F.permuted_divergence(i.pair(C), i.table, bias=i.float(C), exclude="same_label", **masks)


CASES = {
    "nt_xent_present": (lambda i: F.nt_xent(i.pair(), i.labels, present=i.present), ()),
    "nt_xent_instances": (lambda i: F.nt_xent(i.pair()), ()),
    "nt_xent_float_labels": (lambda i: F.nt_xent(i.float(N, D), i.weight), ()),
    "permuted": (divergence, (2,)),
    "permuted_all": (lambda i: F.permuted_divergence(i.pair(C)), (2,)),
    "permuted_cyclic": (
        lambda i: F.permuted_divergence(
            i.pair(C), mcr_fast.sample_permutations(2, N, device=i.device)
        ),
        (2,),
    ),
    "linear": (lambda i: F.linear_permuted_divergence(i.pair(), i.float(C, 2 * D), i.table), (2,)),
    "row": (
        lambda i: F.row_divergence(i.float(N, C), i.float(N, C), i.table[0], row_weight=i.weight),
        (),
    ),
    "reconstruction": (lambda i: F.reconstruction_loss(i.pair(), i.float(N, 2 * D)), ()),
    **{op: (lambda i, loss=loss: loss(*i.pair()), ()) for op, loss in LOSSES.items()},
}


without_values = pytest.mark.parametrize(
    ("device", "mode"), [("meta", nullcontext), ("cpu", FakeTensorMode)], ids=["meta", "fake"]
)


@without_values
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("case", CASES)
def test_functions(case, dtype, device, mode):
    run, shape = CASES[case]
    with mode():
        inputs = Inputs(device, dtype)
        value = run(inputs)
        assert value.shape == shape
        assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert value.device.type == device
        value.sum().backward()
        for x in inputs.leaves:
            assert (x.grad.shape, x.grad.dtype, x.grad.device) == (x.shape, x.dtype, x.device)


def make_fusion(kind):
    first = torch.nn.Linear(2 * D, C)
    if kind == "linear":
        return first
    if kind == "additive":
        return mcr_fast.AdditiveFusion([torch.nn.Linear(D, C) for _ in range(2)])
    mlp = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Linear(C, C))
    if kind == "sequential":
        return mcr_fast.AdditiveFusion.from_sequential(mlp, [D, D])
    return lambda latents: mlp(torch.cat(latents, 1))


@without_values
@pytest.mark.parametrize("source", ["logits", "labels"])
@pytest.mark.parametrize("kind", ["linear", "additive", "sequential", "callable"])
def test_the_regularizer(kind, source, device, mode):
    with mode():
        with torch.device(device):
            fusion = make_fusion(kind)
            mcr = mcr_fast.MCRLoss([D, D], C, num_permutations=2, ceb_weight=1.0, ceb_source=source)
        inputs = Inputs(device, torch.float32)
        out = mcr(inputs.pair(), inputs.labels, fusion=fusion, present=inputs.present)
        assert (out.loss.shape, out.logits.shape, out.importance.shape) == ((), (N, C), (2,))
        assert out.loss.device.type == device
        out.loss.backward()
        assert all(x.grad.shape == x.shape for x in inputs.leaves)


def test_values_are_read_only_where_there_are_values(monkeypatch):
    monkeypatch.setenv("MCR_FAST_CHECK", "1")
    plain = torch.zeros(2)
    assert _checks.may_read(plain)
    assert _checks.may_read(torch.nn.Parameter(plain))
    assert not _checks.may_read(plain.to("meta"))
    with FakeTensorMode() as mode:
        assert not _checks.may_read(plain), "what a fake mode computes has no values"
    assert not _checks.may_read(mode.from_tensor(plain)), "nor has what it made before"
    read = []

    def look(x):
        read.append(_checks.may_read(x))
        return x + 1

    make_fx(look)(plain)
    torch.func.vmap(look)(plain)
    assert read == [False, False]


def test_a_bad_table_is_still_refused_beside_a_counting_mode():
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False), pytest.raises(ValueError, match="must be a permutation"):
        F.permuted_divergence(torch.zeros(2, 3, 2), torch.zeros(1, 3, dtype=torch.int64))


def test_an_explicit_backend_says_why_not_on_meta():
    x = torch.empty(2, N, C, device="meta")
    assert F.permuted_divergence(x, backend="reference").shape == (2,)
    with pytest.raises(RuntimeError, match="takes CPU tensors, got tensors on meta"):
        F.permuted_divergence(x, backend="cpu")
