"""The products of a linear fusion in the CUDA library, on both ways it makes them."""

import pytest
import torch

from mcr_fast.functional import linear_permuted_divergence
from mcr_fast.sampling import sample_permutations

pytestmark = pytest.mark.process("emulated")

# rows, widths, classes: ragged tiles of every kernel, more than one, none
SHAPES = [
    *((7, (5, 3), 6), (1, (1, 1), 1), (33, (130, 40), 9), (9, (300, 2, 7), 35), (40, (64, 64), 70)),
    *((0, (3, 4), 5), (4, (0, 3), 5)),
]
OWN, LIBRARY = {}, {"MCR_EMULATED_kMaxOwnProduct": "-1"}


def leaves(rows, widths, classes, strided=False):
    g = torch.Generator().manual_seed(rows)
    latents = [torch.randn(rows, d, generator=g) for d in widths]
    weight = torch.randn(classes, sum(widths), generator=g) / max(1, sum(widths)) ** 0.5
    if strided:
        latents = [torch.cat([z, z], 1)[:, : z.shape[1]] for z in latents]
        weight = weight.T.contiguous().T
    return [*latents, weight, torch.randn(classes, generator=g)]


def gradients(inputs, backend, dtype, permutations, upstream, **options):
    # as strided as the inputs are
    *latents, weight, bias = made = [x.detach().to(dtype).requires_grad_() for x in inputs]
    value = linear_permuted_divergence(
        latents, weight, permutations, bias=bias, backend=backend, **options
    )
    value.backward(upstream.to(value.dtype))
    return [value.detach(), *(x.grad for x in made)]


@pytest.mark.parametrize("knobs", [OWN, LIBRARY], ids=["own", "library"])
@pytest.mark.parametrize("strided", [False, True])
@pytest.mark.parametrize(("rows", "widths", "classes"), SHAPES)
def test_agrees_with_float64(rows, widths, classes, strided, knobs, monkeypatch):
    for name, value in knobs.items():
        monkeypatch.setenv(name, value)
    inputs = leaves(rows, widths, classes, strided)
    table = sample_permutations(3, rows, scheme="uniform") if rows > 1 else None
    upstream = torch.linspace(-1, 2, 2 ** len(widths) - 2)
    given = (table, upstream)
    options = {"strategy": "independent", "divergence": "jsd" if classes > 1 else "mse"}
    ours = gradients(inputs, "cpu", torch.float32, *given, **options)
    truth = gradients(inputs, "reference", torch.float64, *given, **options)
    for x, y in zip(ours, truth, strict=True):
        scale = float(y.abs().max()) if y.numel() else 0.0
        torch.testing.assert_close(x.double(), y, rtol=1e-4, atol=2e-6 * max(scale, 1e-3))


@pytest.mark.parametrize("knobs", [OWN, LIBRARY], ids=["own", "library"])
@pytest.mark.parametrize("wanted", [[1, 1, 1], [0, 1, 0], [0, 0, 1], [1, 0, 1]])
def test_only_what_is_wanted_and_what_comes_from_the_logits(wanted, knobs, monkeypatch):
    for name, value in knobs.items():
        monkeypatch.setenv(name, value)
    *latents, weight, bias = leaves(7, (5, 3), 6)
    pairs = (bias, None, None, None, None, None, [1, 2], "greedy", "routed", "jsd", "none")
    ops, added = torch.ops.mcr_fast, torch.randn(2, 7, 6)
    _, *units, contributions = ops.linear_permuted_divergence_fwd(latents, weight, *pairs, True)
    columns = weight.split((5, 3), dim=1)
    for upstream, extra in ((None, added), (torch.ones(()).expand(2), added)):
        rest = (contributions, extra, wanted, latents, weight, *pairs)
        grads, to_weight, _ = ops.linear_permuted_divergence_bwd(upstream, *units, *rest)
        each = extra if upstream is None else extra + units[0]
        expected = [g @ w for g, w in zip(each, columns, strict=True)]
        for grad, value, want in zip(grads, expected, wanted[:-1], strict=True):
            torch.testing.assert_close(grad, value if want else torch.empty(0, 0))
        products = torch.cat([g.T @ z for g, z in zip(each, latents, strict=True)], 1)
        torch.testing.assert_close(to_weight, products if wanted[-1] else torch.empty(0, 0))


def test_the_same_bits_again():
    inputs = leaves(33, (130, 40), 9)
    first, second = (
        gradients(inputs, "cpu", torch.float32, None, torch.tensor([1.0, -2.0])) for _ in range(2)
    )
    for x, y in zip(first, second, strict=True):
        assert torch.equal(x, y)
