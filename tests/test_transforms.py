"""torch.func over the losses: each transform is right, or refused in words that name a way out.

Truth is plain autograd: a loop over the samples for vmap, backward() for derivatives. vmap runs the
kernels sample by sample, so it gives the loop's bits; what is summed in another order is compared
to a few eps.
"""

import warnings
from functools import partial

import pytest
import torch
from losses import LOSSES
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import mcr_fast
from mcr_fast import functional as F

B, N, D, C = 3, 6, 4, 5
LABELS = torch.arange(N) // 2
TABLE = torch.stack([torch.arange(N).roll(1), torch.arange(N).roll(2)])


each = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def pair(*shape, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(*shape, generator=g, dtype=torch.float64) for _ in range(2))


def by_backward(loss, a, b):
    a, b = (x.clone().requires_grad_() for x in (a, b))
    loss(a, b).backward()
    return a.grad, b.grad


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-12)


@each
def test_vmap_is_the_loop(loss):
    a, b = pair(B, N, D)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = vmap(loss)(a, b)
    assert torch.equal(mapped, torch.stack([loss(x, y) for x, y in zip(a, b, strict=True)]))
    one_side = vmap(loss, in_dims=(1, None), out_dims=0)(a.transpose(0, 1), b[0])
    assert torch.equal(one_side, torch.stack([loss(x, b[0]) for x in a]))


@each
def test_first_derivatives(loss):
    a, b = pair(N, D)
    to_a, to_b = by_backward(loss, a, b)
    close(grad(loss)(a, b), to_a)
    close(grad(loss, argnums=(0, 1))(a, b), (to_a, to_b))
    value, back = vjp(loss, a, b)
    close(value, loss(a, b))
    close(back(torch.tensor(3.0, dtype=value.dtype)), (3 * to_a, 3 * to_b))
    close(jacrev(loss)(a, b), to_a)


@each
def test_transforms_nest(loss):
    a, b = pair(B, N, D)
    expected = torch.stack([by_backward(loss, x, y)[0] for x, y in zip(a, b, strict=True)])
    close(vmap(grad(loss))(a, b), expected)
    close(grad(lambda x, y: vmap(loss)(x, y).sum())(a, b), expected)
    blocks = jacrev(vmap(loss))(a, b)  # [B, B, N, D], zero off the diagonal
    close(blocks, torch.diag_embed(expected.permute(1, 2, 0)).permute(2, 3, 0, 1))
    leaf = a.clone().requires_grad_()
    vmap(loss)(leaf, b).sum().backward()
    close(leaf.grad, expected)


@each
def test_vmap_of_vmap(loss):
    a, b = pair(2, B, N, D)
    flat = vmap(loss)(a.flatten(0, 1), b.flatten(0, 1))
    close(vmap(vmap(loss))(a, b), flat.view(2, B))


@each
@pytest.mark.parametrize("order", ["jvp", "jacfwd", "hessian", "grad of grad", "backward of grad"])
def test_what_kernels_do_not_have_is_refused(loss, order):
    a, b = pair(N, D)
    refused = {
        "jvp": lambda: jvp(loss, (a, b), (a, b)),
        "jacfwd": lambda: jacfwd(loss)(a, b),
        "hessian": lambda: hessian(loss)(a, b),
        "grad of grad": lambda: grad(lambda x: grad(loss)(x, b).square().sum())(a),
        "backward of grad": lambda: (
            grad(loss)(a.clone().requires_grad_(), b).square().sum().backward()
        ),
    }[order]
    with pytest.raises(RuntimeError, match='backend="reference"'):
        refused()


@each
def test_the_reference_has_every_derivative(loss):
    loss = partial(loss, backend="reference")
    a, b = pair(N, D)
    to_a, to_b = by_backward(loss, a, b)
    value, tangent = jvp(loss, (a, b), (b, a))
    close(value, loss(a, b))
    close(tangent, (to_a * b + to_b * a).sum())
    close(jacfwd(loss)(a, b), to_a)
    batches = pair(B, N, D)
    close(vmap(loss)(*batches), torch.stack([loss(*x) for x in zip(*batches, strict=True)]))
    twice = torch.autograd.functional.hessian(lambda x: loss(x, b), a)
    close(jacfwd(jacrev(loss))(a, b), twice)
    close(jacrev(jacrev(loss))(a, b), twice)


def test_vmap_over_labels_permutations_and_masks():
    a, b = pair(N, D)
    labels = torch.stack([LABELS, LABELS.flip(0) % 2, torch.arange(N)])
    tables = torch.stack([TABLE, TABLE.roll(1, -1), TABLE.flip(0)])
    present = torch.rand(B, N, 2, generator=torch.Generator().manual_seed(1)) > 0.3

    def contrastive(labels, present):
        return F.nt_xent([a, b], labels, present=present)

    def divergences(labels, table, present):
        options = {"exclude": "same_label", "labels": labels, "present": present}
        return F.permuted_divergence([a, b], table, **options)

    for f, batches in ((contrastive, (labels, present)), (divergences, (labels, tables, present))):
        loop = torch.stack([f(*x) for x in zip(*batches, strict=True)])
        assert torch.equal(vmap(f)(*batches), loop)
        assert loop.unique(dim=0).shape[0] == B, "every sample has a value of its own"
    float_labels = vmap(contrastive)(labels.double() / 3, present)
    assert torch.equal(float_labels, vmap(contrastive)(labels, present))


def test_vmap_over_no_sample_is_named():
    with pytest.raises(ValueError, match="over no sample at all"):
        vmap(LOSSES["nt_xent"])(*pair(0, N, D))


@pytest.mark.parametrize("backend", [None, "reference"])
def test_the_regularizer_of_a_linear_fusion(backend):
    fusion = torch.nn.Linear(2 * D, C).double()
    mcr = mcr_fast.MCRLoss(
        [D, D], C, num_permutations="all", ceb_weight=0.5, backend=backend
    ).double()

    def loss(a, b):
        return mcr([a, b], LABELS, fusion=fusion).loss

    a, b = pair(B, N, D)
    close(vmap(loss)(a, b), torch.stack([loss(x, y) for x, y in zip(a, b, strict=True)]))
    expected = [by_backward(loss, x, y)[0] for x, y in zip(a, b, strict=True)]
    close(grad(loss)(a[0], b[0]), expected[0])
    close(vmap(grad(loss))(a, b), torch.stack(expected))
    if backend == "reference":
        close(jacfwd(loss)(a[0], b[0]), expected[0])
    else:
        with pytest.raises(RuntimeError, match='backend="reference"'):
            jacfwd(loss)(a[0], b[0])


@pytest.mark.parametrize("backend", [None, "reference"])
@pytest.mark.parametrize("kind", ["callable", "sequential"])
def test_a_fusion_that_has_to_be_run_is_refused(kind, backend):
    """Its gradient is taken inside the forward, where a transform would lose it unseen."""
    mlp = torch.nn.Sequential(torch.nn.Linear(2 * D, C), torch.nn.Tanh(), torch.nn.Linear(C, C))
    mlp.double()
    fusion = mcr_fast.AdditiveFusion.from_sequential(mlp, [D, D])
    if kind == "callable":
        fusion = lambda latents: mlp(torch.cat(latents, -1))  # noqa: E731
    mcr = mcr_fast.MCRLoss([D, D], C, num_permutations="all", backend=backend)

    def loss(a, b):
        return mcr([a, b], LABELS, fusion=fusion).loss

    one, many = pair(N, D), pair(B, N, D)
    for run in (
        lambda: grad(loss)(*one),
        lambda: jvp(loss, one, one),
        lambda: vmap(loss)(*many),
        lambda: vmap(grad(loss))(*many),
        lambda: grad(lambda a, b: vmap(loss)(a, b).sum())(*many),
        lambda: hessian(loss)(*one),
    ):
        with pytest.raises(NotImplementedError, match="take a linear fusion"):
            run()
    mcr.mipd_weight = 0.0  # what is left is made of the functions
    close(grad(loss)(*one), by_backward(loss, *one)[0])


@pytest.mark.parametrize("randomness", ["same", "different"])
def test_donors_are_drawn_as_vmap_is_told(randomness):
    fusion = torch.nn.Linear(2 * D, C).double()
    mcr = mcr_fast.MCRLoss([D, D], C, num_permutations=2)

    def value(a, b):
        return mcr([a, b], LABELS, fusion=fusion).mipd

    same = [x.expand(B, N, D) for x in pair(N, D)]
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(value)(*same)
    values = vmap(value, randomness=randomness)(*same)
    assert len(values.unique()) == (1 if randomness == "same" else B)
    mcr.eval()  # draws nothing
    close(vmap(value)(*same), value(*(x[0] for x in same)).expand(B))


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.encoders = torch.nn.ModuleList(torch.nn.Linear(D, D) for _ in range(2))
        self.fusion = torch.nn.Linear(2 * D, C)
        self.mcr = mcr_fast.MCRLoss([D, D], C, num_permutations="all", ceb_weight=1.0)
        self.double()

    def forward(self, a, b):
        latents = [encode(x) for encode, x in zip(self.encoders, (a, b), strict=True)]
        return self.mcr(latents, LABELS, fusion=self.fusion).loss


def test_an_ensemble_of_models():
    """Parameters of several models stacked, which is what functional_call and vmap are used for."""
    a, b = pair(N, D)
    models = [Model() for _ in range(B)]
    stacked, _ = torch.func.stack_module_state(models)

    def loss(parameters):
        return torch.func.functional_call(models[0], parameters, (a, b))

    close(vmap(loss)(stacked), torch.stack([model(a, b) for model in models]))
    gradients = vmap(grad(loss))(stacked)
    for i, model in enumerate(models):
        model(a, b).backward()
        for name, parameter in model.named_parameters():
            close(gradients[name][i], parameter.grad)


@pytest.mark.parametrize("op", ["linear_permuted_divergence", "reconstruction_loss"])
def test_batched_gradients_of_autograd_are_right_or_refused(op):
    loss, inputs = LOSSES[op], pair(N, D)
    jacobian = partial(torch.autograd.functional.jacobian, vectorize=True)
    with pytest.raises(NotImplementedError, match=r"use torch.func.jacrev, or backend=.reference"):
        jacobian(loss, inputs)
    close(jacobian(partial(loss, backend="reference"), inputs), by_backward(loss, *inputs))


def test_batched_gradients_of_a_fusion_that_is_run_are_refused():
    mlp = torch.nn.Sequential(torch.nn.Linear(2 * D, C), torch.nn.Tanh()).double()
    mcr = mcr_fast.MCRLoss([D, D], C, num_permutations="all")

    def loss(a, b):
        return mcr([a, b], LABELS, fusion=lambda z: mlp(torch.cat(z, -1))).loss

    with pytest.raises(NotImplementedError, match="MCRLoss takes no batched gradients"):
        torch.autograd.functional.jacobian(loss, pair(N, D), vectorize=True)
    close(torch.autograd.functional.jacobian(loss, pair(N, D)), by_backward(loss, *pair(N, D)))


@pytest.mark.parametrize("transform", [grad, vmap, lambda f: vmap(grad(f))])
def test_transforms_under_the_compiler(transform):
    a, b = pair(B, N, D) if transform is not grad else pair(N, D)
    run = transform(LOSSES["nt_xent"])
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    close(compiled(a, b), run(a, b))
