"""`linear_permuted_divergence` is `permuted_divergence` of the contributions, in one node."""

import pytest
import torch
import torch.nn.functional as F
from contrastive import needs_library
from inputs import make_latents

from mcr_fast.functional import linear_permuted_divergence, permuted_divergence
from mcr_fast.reference.linear_permuted_divergence import linear_permuted_divergence_reference
from mcr_fast.sampling import sample_permutations

DIMS = (5, 3, 4)
CLASSES = 6
OPTIONS = ("subsets", "strategy", "clean_path", "divergence", "exclude")


def leaves(seed, num_rows, dtype=torch.float64):
    latents = [make_latents(seed + m, 1, num_rows, width=d)[0] for m, d in enumerate(DIMS)]
    g = torch.Generator().manual_seed(seed)
    weight = torch.randn(CLASSES, sum(DIMS), generator=g, dtype=torch.float64)
    bias = torch.randn(CLASSES, generator=g, dtype=torch.float64)
    return [x.detach().to(dtype).requires_grad_() for x in (*latents, weight, bias)]


def apart(latents, weight, bias, permutations, **options):
    columns = weight.split(DIMS, dim=1)
    contributions = torch.stack([F.linear(z, w) for z, w in zip(latents, columns, strict=True)])
    return permuted_divergence(contributions, permutations, bias=bias, **options)


def both(inputs, permutations, grad=None, **options):
    results = []
    for function in (linear_permuted_divergence, None):
        *latents, weight, bias = [x.detach().clone().requires_grad_() for x in inputs]
        if function is None:
            value = apart(latents, weight, bias, permutations, **options)
        else:
            value = function(latents, weight, permutations, bias=bias, **options)
        value.backward(torch.ones_like(value) if grad is None else grad.to(value.dtype))
        results.append([value.detach(), *(x.grad for x in (*latents, weight, bias))])
    return results


@pytest.mark.parametrize("scheme", ["uniform", "cyclic", "all"])
@pytest.mark.parametrize("strategy", ["greedy", "independent", "collaborative"])
@pytest.mark.parametrize("backend", [None, "reference"])
def test_agrees_with_the_ops_apart(scheme, strategy, backend):
    table = None if scheme == "all" else sample_permutations(4, 9, scheme=scheme, num_modalities=3)
    grad = torch.randn(6, dtype=torch.float64)
    torch.testing.assert_close(
        *both(leaves(1, 9), table, grad, strategy=strategy, backend=backend), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes(dtype):
    for one, other in zip(*both(leaves(2, 40, dtype), None), strict=True):
        assert one.dtype == other.dtype
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(one, other, rtol=16 * eps, atol=4 * eps)


def test_only_what_is_asked_for():
    *latents, weight, bias = leaves(3, 7)
    frozen = [latents[0].detach(), *latents[1:]]
    linear_permuted_divergence(frozen, weight.detach(), bias=bias).sum().backward()
    assert weight.grad is None
    assert latents[0].grad is None
    assert latents[1].grad is not None
    assert bias.grad is not None


def test_the_same_bits_with_and_without_gradients():
    *latents, weight, bias = leaves(4, 7, torch.float32)
    value = linear_permuted_divergence(latents, weight, bias=bias)
    with torch.no_grad():
        again = linear_permuted_divergence(latents, weight, bias=bias)
    assert torch.equal(again, value)
    assert not again.requires_grad


def test_sixteen_bits_are_widened_before_the_products():
    *latents, weight, bias = (x.detach() for x in leaves(6, 7, torch.bfloat16))
    pairs = (None,) * 5  # all there are
    options = dict(zip(OPTIONS, [(1, 2, 4), "greedy", "shared", "jsd", "none"], strict=True))
    wide = [z.float() for z in latents], weight.float(), bias.float()
    truth = linear_permuted_divergence_reference(*wide, *pairs, **options)
    ours = linear_permuted_divergence_reference(latents, weight, bias, *pairs, **options)
    torch.testing.assert_close(ours, truth, rtol=0, atol=0)
    value = linear_permuted_divergence(latents, weight, bias=bias, subsets="single")
    torch.testing.assert_close(value, truth, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "process", ["", pytest.param("cuda", marks=pytest.mark.process("emulated"))]
)
@needs_library
def test_contributions_of_another_dtype_are_refused(process):
    """Their gradient would be read as numbers of twice the size, past its end."""
    *latents, weight, bias = (x.detach() for x in leaves(5, 7, torch.float32))
    rest = (bias, *[None] * 5, [1, 2, 4], "greedy", "shared", "jsd", "none")
    ops = torch.ops.mcr_fast
    _, *units, contributions = ops.linear_permuted_divergence_fwd(latents, weight, *rest, True)
    given = (contributions.bfloat16(), None, [1] * 4, latents, weight, *rest)
    with pytest.raises(RuntimeError, match="contributions must have the dtype of the weight"):
        ops.linear_permuted_divergence_bwd(torch.ones(3), *units, *given)


def test_twice_backward_and_double_backward():
    *latents, weight, bias = leaves(5, 7, torch.float32)
    value = linear_permuted_divergence(latents, weight, bias=bias).sum()
    value.backward(retain_graph=True)
    once = weight.grad.clone()
    value.backward()
    torch.testing.assert_close(weight.grad, 2 * once)
    (grad,) = torch.autograd.grad(
        linear_permuted_divergence(latents, weight, bias=bias).sum(), weight, create_graph=True
    )
    with pytest.raises(RuntimeError, match="differentiat"):
        grad.sum().backward()


def test_compiled_and_autocast():
    *latents, weight, bias = leaves(6, 7, torch.float32)

    def run():
        return linear_permuted_divergence(latents, weight, bias=bias)

    eager = run()
    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")()
    torch.testing.assert_close(compiled, eager)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(run(), eager, rtol=0.1, atol=0.02)


def rounded(seed, num_rows):
    """Factors that bfloat16 holds, where products of them need more than 8 bits."""
    return [x.detach().to(torch.bfloat16).double() for x in leaves(seed, num_rows)]


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("how", ["16-bit", "autocast", "mixed under autocast"])
def test_logits_are_not_rounded_to_16_bits(how, backend):
    """Against float64: what is left of an error is float32's, and one rounding of the gradient."""
    inputs = rounded(8, 40)
    *latents, weight, bias = [x.clone().requires_grad_() for x in inputs]
    truth = linear_permuted_divergence(latents, weight, bias=bias, strategy="independent")
    truth.sum().backward()
    dtypes = [torch.bfloat16 if how == "16-bit" else torch.float32] * 5
    if how.startswith("mixed"):
        dtypes[0] = torch.bfloat16
    ours = [x.to(d).requires_grad_() for x, d in zip(inputs, dtypes, strict=True)]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled="autocast" in how):
        value = linear_permuted_divergence(
            ours[:3], ours[3], bias=ours[4], strategy="independent", backend=backend
        )
    value.sum().backward()
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), truth.detach(), rtol=1e-5, atol=1e-6)
    for x, y in zip(ours, (*latents, weight, bias), strict=True):
        rtol = torch.finfo(x.dtype).eps if x.dtype == torch.bfloat16 else 1e-4
        atol = 1e-2 * rtol * float(y.grad.abs().max())
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=rtol, atol=atol)
