"""What is inside of the launchers of perturbed hidden rows, on interpreted Triton kernels."""

import functools

import pytest
import torch
import torch.nn.functional as F
from inputs import generator, make_latents
from test_routing import mcr
from tolerances import check_gradient
from torch import nn

import mcr_fast
from mcr_fast.kernels import config
from mcr_fast.kernels import gather_add as kernels
from mcr_fast.kernels.config import TABLE, Config
from mcr_fast.mipd import hidden

pytestmark = pytest.mark.process("interpreted")

ACTIVATIONS = {
    "none": lambda h: h,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]

# M, N, H, K, subset, first and last row: aligned, one, ragged, many modalities, part of the rows
SHAPES = [
    (2, 8, 16, 3, 0b01, (0, 8)),
    (2, 1, 1, 1, 0b10, (0, 1)),
    (3, 7, 19, 2, 0b101, (0, 7)),
    (8, 5, 3, 1, 0b1011_0110, (0, 5)),
    (2, 37, 33, 1, 0b10, (5, 29)),
    (3, 18, 17, 2, 0b110, (17, 18)),
]


@pytest.fixture
def small_tiles(monkeypatch):
    config = Config(1, {"BLOCK_R": 16, "BLOCK_H": 16}, 4)
    monkeypatch.setitem(TABLE, "gather_add", (config,))


def make_inputs(shape, dtype=torch.float32, own_donors=True, dropped=False):
    """x, hidden, donors, kept, subset, first and last row."""
    m, n, h, k, subset, (start, stop) = shape
    g = generator(1)
    x = torch.randn(m, n, h, generator=g, dtype=torch.float64).to(dtype)
    bias = torch.randn(h, generator=g)
    tables = m if own_donors else 1
    donors = torch.stack(
        [torch.stack([torch.randperm(n, generator=g) for _ in range(k)]) for _ in range(tables)]
    )
    kept = torch.rand(k * (stop - start), generator=g) > 0.3 if dropped else None
    return x, x.float().sum(0) + bias, donors, kept, subset, start, stop


def eager(inputs, activation, grad, dtype):
    """Rows, and the gradients of (contributions through donors, rows by themselves)."""
    x, hidden, donors, kept, subset, start, stop = inputs
    x = x.to(dtype).detach().clone().requires_grad_()
    hidden = hidden.to(dtype).detach().clone().requires_grad_()
    count = donors.shape[1]
    h = hidden[start:stop].expand(count, -1, -1)
    for m in range(len(x)):
        if subset >> m & 1:
            table = donors[m if len(donors) > 1 else 0, :, start:stop]
            h = h + (x[m][table] - x[m].detach()[start:stop])
    h = h.flatten(0, 1)
    if kept is not None:
        # zero in value; the gradient of a dropped row is the head's to take care of
        h = h - torch.where(kept[:, None], 0, h).detach()
    out = ACTIVATIONS[activation](h)
    out.backward(grad.to(dtype))
    return out.detach(), x.grad, hidden.grad[start:stop]


def triton(inputs, activation, grad):
    x, donors = inputs[0], inputs[2]
    out = kernels.gather_add_fwd(*inputs, activation, x.dtype)
    total = torch.zeros(x.shape)
    to_rows = kernels.gather_add_bwd(grad, *inputs, activation, donors.argsort(-1), total)
    return out, total, to_rows


def check(inputs, activation):
    rows, width = inputs[2].shape[1] * (inputs[6] - inputs[5]), inputs[0].shape[2]
    dtype = inputs[0].dtype
    grad = torch.randn(rows, width, generator=generator(2)).to(dtype)
    ours = triton(inputs, activation, grad)
    plain = eager(inputs, activation, grad, torch.float32)
    truth = eager(inputs, activation, grad, torch.float64)
    case = (activation, dtype)
    assert ours[0].dtype == dtype
    for a, p, t in zip(ours, plain, truth, strict=True):
        if dtype == torch.float32:
            check_gradient("gather_add", a, t, p, case=case)
        else:
            # rows are stored in 16 bits, and the gradient of the hidden rows on its way; the
            # interpreter truncates to bfloat16, a GPU rounds
            bound = torch.finfo(dtype).eps * (1 + t.abs().max())
            assert (a.double() - t).abs().max() <= bound * rows**0.5, case


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_against_eager(shape, activation, small_tiles):
    check(make_inputs(shape), activation)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dropped_rows_and_dtypes(activation, dtype, small_tiles):
    for own_donors in (False, True):
        check(make_inputs((3, 9, 20, 3, 0b011, (0, 9)), dtype, own_donors, True), activation)
    check(make_inputs((2, 9, 20, 1, 0b01, (2, 8)), dtype, False, True), activation)


@pytest.mark.parametrize("width", [20, 100, 600])
def test_the_tiles_of_the_table(width):
    check(make_inputs((2, 35, width, 2, 0b01, (0, 35))), "gelu")


def test_parts_of_the_permutations(small_tiles, monkeypatch):
    """More permutations than one program takes, and a last part that is shorter."""
    monkeypatch.setattr(config, "PROGRAMS", 3)
    for count in (2, 7):
        inputs = make_inputs((2, 2, 3, count, 0b01, (0, 2)))
        check(inputs, "relu")


def test_a_row_that_replaces_itself_is_clean(small_tiles):
    x, hidden, donors, *rest = make_inputs((3, 20, 18, 2, 0b111, (0, 20)))
    donors = torch.arange(20).expand_as(donors).contiguous()
    out = kernels.gather_add_fwd(x, hidden, donors, *rest, "none", torch.float32)
    assert torch.equal(out.view(2, 20, 18), hidden.expand(2, -1, -1))


def test_same_bits_and_no_uninitialised_memory(small_tiles, monkeypatch):
    inputs = make_inputs((3, 20, 18, 2, 0b011, (0, 20)), dropped=True)
    grad = torch.randn(40, 18, generator=generator(2))
    expected = triton(inputs, "gelu", grad)
    for name in ("empty", "empty_like"):
        plain = getattr(torch, name)
        poisoned = lambda *a, plain=plain, **k: plain(*a, **k).fill_(torch.nan)  # noqa: E731
        monkeypatch.setattr(torch, name, poisoned)
    again = triton(inputs, "gelu", grad)
    assert all(torch.equal(a, b) for a, b in zip(expected, again, strict=True))


def test_strided_gradient(small_tiles):
    x, hidden, donors, *rest = make_inputs((2, 9, 20, 3, 0b01, (0, 9)))
    grad = torch.randn(27, 20, generator=generator(2))
    expected = triton((x, hidden, donors, *rest), "relu", grad)
    got = triton((x, hidden, donors, *rest), "relu", grad.T.contiguous().T)
    assert all(torch.equal(a, b) for a, b in zip(expected, got, strict=True))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_far_and_not_finite(activation):
    shape = (2, 3, 2, 1, 0b01, (0, 3))
    x, hidden, donors, *rest = make_inputs(shape)
    same = torch.arange(3).expand_as(donors).contiguous()
    far = torch.tensor([[-100.0, 100.0], [-12.0, 12.0], [torch.nan, 0.0]])
    grad = torch.ones(3, 2)
    out, _, to_rows = triton((x, far, same, *rest), activation, grad)
    h = far.double().requires_grad_()
    wanted = ACTIVATIONS[activation](h)
    wanted.sum().backward()
    torch.testing.assert_close(out.double(), wanted.detach(), equal_nan=True, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(to_rows.double(), h.grad, equal_nan=True, rtol=1e-6, atol=1e-6)


def test_no_pairs():
    x, hidden, donors, kept, subset, *_ = make_inputs((2, 4, 3, 2, 1, (0, 4)))
    for inputs in (
        (x, hidden, donors[:, :0], kept, subset, 0, 4),
        (x[:, :, :0], hidden[:, :0], donors, kept, subset, 0, 4),
    ):
        rows, width = inputs[2].shape[1] * 4, inputs[0].shape[2]
        out, total, to_rows = triton(inputs, "gelu", torch.zeros(rows, width))
        assert out.shape == (rows, width)
        assert not total.any()
        assert to_rows.shape == (4, width)
        assert not to_rows.any()


# In the loss: tests/suite/cases/gather_add.py has the rest


def play(fusion, dtype, backend, **options):
    latents = make_latents(2, 2, 7, dtype=dtype)
    loss = mcr(2, backend=backend, num_permutations=2, **options)
    out = loss(latents, None, fusion=fusion, generator=generator(3))
    return torch.autograd.grad(out.mipd, [*latents, *fusion.parameters()])


@pytest.fixture
def launches(monkeypatch):
    """Counts the kernel's runs, so that no test passes on the eager way."""
    found = []

    def counted(*inputs):
        found.append(inputs[-2])
        return forward(*inputs)

    forward = kernels.gather_add_fwd
    monkeypatch.setattr(kernels, "gather_add_fwd", counted)
    return found


def of_modules(dtype):
    torch.manual_seed(5)
    parts = [nn.Linear(4, 6), nn.Sequential(nn.Linear(4, 6), nn.Tanh())]
    head = nn.Sequential(nn.ReLU(), nn.Linear(6, 3))
    return mcr_fast.AdditiveFusion(parts, nn.Parameter(torch.randn(6)), head).to(dtype)


def of_layers(dtype):
    torch.manual_seed(5)
    layers = nn.Sequential(nn.Linear(8, 6), nn.GELU(), nn.Linear(6, 3)).to(dtype)
    return mcr_fast.AdditiveFusion.from_sequential(layers, [4] * 2)


@pytest.mark.parametrize("make", [of_modules, of_layers])
def test_made_of_modules_and_of_layers(make, launches):
    wanted = play(make(torch.float64), torch.float64, "reference")
    assert not launches
    grads = play(make(torch.float32), torch.float32, "triton")
    assert launches
    for grad, truth in zip(grads, wanted, strict=True):
        torch.testing.assert_close(grad.double(), truth, rtol=1e-4, atol=1e-6)


def test_other_ways_stay_eager(launches):
    for options in ({"backend": None}, {"backend": "triton", "perturbation": "noise"}):
        play(of_layers(torch.float32), torch.float32, **options)
    assert not launches


def test_what_is_split_off():
    linear = nn.Linear(3, 2)
    for head in (None, linear, nn.Sequential(), nn.Sequential(nn.Tanh(), nn.ReLU())):
        assert hidden.split_activation(head) == ("none", head)
    name, rest = hidden.split_activation(nn.Sequential(nn.GELU(approximate="tanh"), linear))
    assert (name, list(rest)) == ("gelu_tanh", [linear])
    hooked = nn.Sequential(nn.ReLU(), linear)
    hooked[0].register_forward_hook(lambda *_: None)
    assert hidden.split_activation(hooked) == ("none", hooked)
