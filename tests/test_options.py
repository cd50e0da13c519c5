"""Options of `MCRLoss` that are set after it was made: checked as at first, and followed."""

import copy
import pickle
import warnings

import pytest
import torch
from regularizer import LABELS, WAYS, C, D, mcr, setting
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from mcr_fast import MCRLoss

np = pytest.importorskip("numpy")
WEIGHTS = ("mipd_weight", "contrastive_weight", "ceb_weight")

# Checks


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("value", [np.float32(0.5), np.array(0.5), torch.tensor(0.5), 0.5])
def test_numbers_of_all_libraries_become_pythons(weight, value):
    loss = mcr(ceb_weight=1.0)
    setattr(loss, weight, value)
    assert type(getattr(loss, weight)) is float
    assert getattr(loss, weight) == 0.5
    loss.num_permutations = np.int64(3)
    assert type(loss.num_permutations) is int


BAD = [
    *((weight, value) for weight in WEIGHTS for value in (float("nan"), "0.1", None, [0.1], True)),
    *(("temperature", value) for value in (0.0, -1.0, float("inf"))),
    *(("num_permutations", value) for value in (0, 1.5, "most", None)),
    *(("chunk_rows", value) for value in (0, 2.5, "all")),
    *((name, value) for name in ("strategy", "scheme", "subsets") for value in ("best", None, 1)),
    *(("divergence", "kl"), ("exclude", "none"), ("perturbation", "drop"), ("backend", "gpu")),
    *(
        ("clean_path", "own"),
        ("contrastive", "clip"),
        ("ceb_source", "y"),
        ("fusion_mode", "train"),
    ),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_bad_value_is_named_and_not_kept(name, value):
    loss = mcr()
    before = getattr(loss, name)
    with pytest.raises((ValueError, TypeError), match=name) as set_later:
        setattr(loss, name, value)
    assert getattr(loss, name) == before
    with pytest.raises(type(set_later.value)) as at_first:
        mcr(**{name: value})
    assert str(at_first.value) == str(set_later.value)


def test_one_logit_is_refused_whichever_way_it_comes():
    loss = MCRLoss([D, D], 1, divergence="mse")
    with pytest.raises(ValueError, match="num_classes must be at least 2"):
        loss.divergence = "jsd"
    assert loss.divergence == "mse"


@pytest.mark.parametrize("name", ["latent_dims", "num_classes"])
def test_sizes_are_fixed(name):
    with pytest.raises(AttributeError, match=f"{name} cannot be set after MCRLoss was made"):
        setattr(mcr(), name, getattr(mcr(), name))


def test_noise_needs_a_number_of_draws():
    fusion, latents = setting()
    with pytest.raises(ValueError, match="num_permutations must be a number for perturbation"):
        mcr(perturbation="noise", num_permutations="all")(latents, LABELS, fusion=fusion)


# What follows


SET = [
    {"subsets": "single", "num_permutations": "all"},
    {"strategy": "independent", "clean_path": "routed", "scheme": "uniform"},
    {"mipd_weight": 0.7, "contrastive_weight": 0.2, "temperature": 0.1},
    {"contrastive": "sup_con", "divergence": "mse", "exclude": "same_label"},
    {"perturbation": "zero", "backend": "reference"},
    {"ceb_weight": 0.3, "ceb_source": "labels", "mipd_weight": 0.0},
]


@pytest.mark.parametrize("options", SET)
@pytest.mark.parametrize("kind", WAYS)
def test_set_later_is_set_at_first(kind, options):
    fusion, latents = setting(kind, num_modalities=3)
    made, changed = (
        mcr(3, ceb_weight=0.1, **options) if "ceb_weight" not in options else mcr(3, **options),
        mcr(3, ceb_weight=0.1),
    )
    changed.load_state_dict(made.state_dict())
    changed(latents, LABELS, fusion=fusion)  # a known form, for some
    for name, value in options.items():
        setattr(changed, name, value)
    results = []
    for loss in (made, changed):
        torch.manual_seed(0)
        out = loss(latents, LABELS, fusion=fusion)
        results.append([*out, *torch.autograd.grad(out.loss, latents)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_a_head_is_made_when_its_weight_is_raised():
    fusion, latents = setting()
    loss = mcr()
    with pytest.warns(UserWarning, match=r"optimizer.add_param_group") as caught:
        loss.ceb_weight = 0.5
    assert caught[0].filename == __file__
    optimizer = torch.optim.SGD(loss.parameters(), 0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loss(latents, LABELS, fusion=fusion).loss.backward()
        assert all(p.dtype == torch.float64 for p in loss.parameters()), "beside the latents"
        before = [p.detach().clone() for p in loss.parameters()]
        optimizer.step()
        assert all(not torch.equal(p, q) for p, q in zip(loss.parameters(), before, strict=True))
        head = loss.ceb_head
        loss.ceb_weight = 0.0
        loss.ceb_weight = 1.0
    assert loss.ceb_head is head
    fresh = mcr(ceb_weight=1.0).double()
    fresh.load_state_dict(loss.state_dict())
    for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert (
            again(latents, LABELS, fusion=fusion).ceb == fresh(latents, LABELS, fusion=fusion).ceb
        )


@pytest.mark.parametrize("weights", [{}, {"mipd_weight": 0.0, "contrastive_weight": 0.0}])
@pytest.mark.parametrize("compiled", [False, True])
def test_a_head_whose_weight_was_lowered_gets_zeros(compiled, weights):
    """What averages gradients waits for that of every parameter, in steps of a known form too."""
    fusion, latents = setting()
    loss = mcr(ceb_weight=0.5, **weights).double()
    loss.ceb_weight = 0.0
    torch._dynamo.reset()
    run = torch.compile(loss, backend="aot_eager", fullgraph=True) if compiled else loss
    for _ in range(3):
        out = run(latents, LABELS, fusion=fusion)
        grads = torch.autograd.grad(out.loss, list(loss.parameters()))
        assert not any(grad.any() for grad in grads)
    with torch.no_grad():
        assert not loss(latents, LABELS, fusion=fusion).loss.requires_grad


def test_a_head_that_was_made_without_gradients_is_trained():
    fusion, latents = setting()
    loss = mcr()
    with torch.inference_mode():
        with pytest.warns(UserWarning, match="head is new"):
            loss.ceb_weight = 0.5
        loss([z.detach() for z in latents], LABELS, fusion=fusion)
    loss(latents, LABELS, fusion=fusion).loss.backward()
    assert all(p.grad is not None for p in loss.ceb_head.parameters())


def test_a_warning_of_a_late_head_may_be_an_error():
    fusion, latents = setting()
    loss = mcr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="head is new"):
            loss.ceb_weight = 0.5
        loss(latents, LABELS, fusion=fusion).loss.backward()
    assert all(p.grad is not None for p in loss.ceb_head.parameters())


def test_a_head_that_was_taken_away_is_asked_for():
    fusion, latents = setting()
    loss = mcr(ceb_weight=0.5).double()
    loss.ceb_head = None
    with pytest.raises(ValueError, match="ceb_head must be a module"):
        loss(latents, LABELS, fusion=fusion)
    with pytest.warns(UserWarning, match="head is new"):
        loss.ceb_weight = 0.5
    loss(latents, LABELS, fusion=fusion)


# No term at all


class Frozen(nn.Module):
    """A fusion that is no function of its latents."""

    def forward(self, latents):
        return latents[0].new_zeros(len(latents[0]), C)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("kind", WAYS)
def test_a_loss_without_terms_goes_backward(kind, compiled):
    fusion, latents = setting(kind)
    loss = mcr(mipd_weight=0.0, contrastive_weight=0.0)
    run = torch.compile(loss, backend="aot_eager") if compiled else loss
    # compiled code takes an output that is not used for one of gradient zero, and 0 * inf is NaN
    for broken in (False,) if compiled else (False, True):
        if broken:
            with torch.no_grad():
                latents[0][0, 0] = torch.inf
        out = run(latents, LABELS, fusion=fusion)
        assert out.loss == 0
        assert out.loss.requires_grad
        grads = torch.autograd.grad(out.loss, latents)
        assert all(torch.equal(g, torch.zeros_like(z)) for g, z in zip(grads, latents, strict=True))
    with torch.no_grad():
        assert not run(latents, LABELS, fusion=fusion).loss.requires_grad


def test_whatever_wants_a_gradient_gets_zeros():
    fusion, latents = setting()
    loss = mcr(mipd_weight=0.0, contrastive_weight=0.0)
    detached = [z.detach() for z in latents]
    loss(detached, LABELS, fusion=fusion).loss.backward()
    assert torch.equal(fusion.weight.grad, torch.zeros_like(fusion.weight))
    loss(latents, LABELS, fusion=Frozen()).loss.backward()
    assert torch.equal(latents[0].grad, torch.zeros_like(latents[0]))
    # and where the one term that there is looks at something else
    loss.contrastive_weight = 1.0
    out = loss(latents, LABELS, fusion=fusion, embeddings=detached)
    assert out.loss == out.contrastive != 0
    assert all(not g.any() for g in torch.autograd.grad(out.loss, latents))
    fusion.requires_grad_(False)
    assert not loss(detached, LABELS, fusion=fusion).loss.requires_grad


# Schedules in compiled code


@pytest.mark.parametrize("backend", [None, "reference"])
def test_a_schedule_compiles_two_graphs(backend):
    """One for the first weights and one for all others."""
    torch._dynamo.reset()
    fusion, latents = setting(dtype=torch.float32)
    loss = mcr(num_permutations="all", ceb_weight=0.1, backend=backend)
    counter = CompileCounterWithBackend("aot_eager")
    run = torch.compile(loss, backend=counter, fullgraph=True)
    for step in range(1, 8):
        loss.mipd_weight, loss.contrastive_weight = 0.1 * step, 1.0 + 1 / step
        loss.ceb_weight = 0.05 * step
        results = []
        for each in (run, loss):
            out = each(latents, LABELS, fusion=fusion)
            results.append([*out, *torch.autograd.grad(out.loss, latents)])
        torch.testing.assert_close(*results)
    assert counter.frame_count == 2


def test_a_weight_that_is_raised_in_or_before_compiled_code():
    torch._dynamo.reset()
    fusion, latents = setting(dtype=torch.float32)
    loss = mcr(num_permutations="all")
    run = torch.compile(loss, backend="aot_eager", fullgraph=True)
    run(latents, LABELS, fusion=fusion)
    with pytest.warns(UserWarning, match="head is new"):
        loss.ceb_weight = 0.5
    out = run(latents, LABELS, fusion=fusion)
    torch.testing.assert_close(out.loss, loss(latents, LABELS, fusion=fusion).loss)
    assert out.ceb > 0
