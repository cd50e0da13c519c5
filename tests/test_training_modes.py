"""Whole steps as trainers make them: scaled, accumulated, checked for anomalies, converted."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from inputs import make_latents
from regularizer import LABELS, WAYS, C, D, N, mcr, setting
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import cross_entropy

import mcr_fast
from mcr_fast.ops._modes import autocast_enabled


def step(fusion, latents, labels=LABELS, loss=None, **given):
    """The task loss and the regularizer of one batch."""
    loss = mcr(num_permutations="all", mipd_weight=1.0) if loss is None else loss
    out = loss(latents, labels, fusion=fusion, **given)
    return out.loss + cross_entropy(out.logits.float(), labels)


# Scaled and in other precisions


@pytest.mark.parametrize("kind", WAYS)
def test_a_gradient_scaler_changes_nothing(kind):
    results = []
    for scaled in (False, True):
        fusion, latents = setting(kind, dtype=torch.float32)
        optimizer = torch.optim.SGD([*fusion.parameters(), *latents], 0.1)
        scaler = torch.amp.GradScaler("cpu", enabled=scaled, init_scale=1024.0)
        with torch.autocast("cpu", torch.float16):
            loss = step(fusion, latents)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(latents, 1.0)
        scaler.step(optimizer)
        scaler.update()
        assert scaler.get_scale() == (1024.0 if scaled else 1.0), "no inf was found"
        results.append([loss.detach(), *(z.detach() for z in latents), *fusion.parameters()])
    torch.testing.assert_close(*results, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", WAYS)
def test_a_scaler_hears_of_gradients_that_are_too_large(kind):
    fusion, latents = setting(kind, dtype=torch.float32)
    optimizer = torch.optim.SGD(latents, 0.1)
    scaler, before = torch.amp.GradScaler("cpu", init_scale=1e38), latents[0].detach().clone()
    scaler.scale(1e5 * step(fusion, latents)).backward()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() < 1e38
    assert torch.equal(latents[0], before), "the step was left out"


def test_autocast_of_another_device_is_not_ours():
    fusion, latents = setting(dtype=torch.float32)
    expected = step(fusion, latents)
    torch.set_autocast_enabled("cuda", True)
    try:
        assert autocast_enabled(torch.device("cuda"))
        assert not autocast_enabled(torch.device("cpu"))
        assert step(fusion, latents) == expected
    finally:
        torch.set_autocast_enabled("cuda", False)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", WAYS)
def test_the_module_is_converted_with_the_model(kind, dtype):
    fusion, latents = setting(kind, dtype=dtype)
    loss = mcr(num_permutations="all", ceb_weight=0.5).to(dtype)
    out = loss(latents, LABELS, fusion=fusion)
    out.loss.backward()
    assert all(p.grad.dtype == dtype for p in loss.parameters())
    assert all(z.grad.dtype == dtype for z in latents)
    wide = copy.deepcopy(loss).double()
    exact = wide([z.double() for z in latents], LABELS, fusion=copy.deepcopy(fusion).double())
    torch.testing.assert_close(out.loss.double(), exact.loss, rtol=0.02, atol=0.02)
    assert all(p.is_meta for p in loss.to("meta").parameters())


@pytest.mark.parametrize("kind", WAYS)
def test_copies_give_the_same_bits(kind):
    fusion, latents = setting(kind)
    loss = mcr(num_permutations="all", ceb_weight=0.5).double()
    expected = step(fusion, latents, loss=loss)
    file = io.BytesIO()
    torch.save(loss, file)
    file.seek(0)
    copies = (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss)))
    for again in (*copies, torch.load(file, weights_only=False)):
        assert step(fusion, latents, loss=again) == expected
        again.mipd_weight = 0.0  # its options are its own
    assert loss.mipd_weight == 0.1


# Watched


@pytest.mark.parametrize("kind", WAYS)
def test_anomaly_mode_finds_none(kind):
    fusion, latents = setting(kind)
    expected = torch.autograd.grad(step(fusion, latents), latents)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it is slow
        with torch.autograd.detect_anomaly():
            found = torch.autograd.grad(step(fusion, latents), latents)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_anomaly_mode_names_what_made_a_nan():
    fusion, latents = setting()
    with torch.no_grad():
        latents[0][0, 0] = torch.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.autograd.detect_anomaly(), pytest.raises(RuntimeError, match="nan values"):
            step(fusion, latents).backward()


@pytest.mark.parametrize("kind", WAYS)
@pytest.mark.parametrize("options", [{}, {"contrastive": "sup_con", "ceb_weight": 0.5}])
def test_deterministic_algorithms_are_all_there_are(kind, options):
    torch.use_deterministic_algorithms(True)
    try:
        fusion, latents = setting(kind, 3)
        loss = mcr(3, num_permutations=2, chunk_rows=5, exclude="same_label", **options).double()
        results = []
        for _ in range(2):
            torch.manual_seed(0)
            total = step(fusion, latents, loss=loss)
            results.append([total, *torch.autograd.grad(total, latents)])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


# Accumulated


@pytest.mark.parametrize("kind", WAYS)
def test_mipd_is_the_mean_of_its_micro_batches(kind):
    """Of equal sizes: with the donors of each it is one batch's, gradients too."""
    rows, parts = 12, 3
    fusion, latents = setting(kind, num_rows=rows)
    loss = mcr(mipd_weight=1.0, contrastive_weight=0.0, strategy="independent")
    tables = [mcr_fast.sample_permutations(2, rows // parts).index() for _ in range(parts)]
    leaves = [*latents, *fusion.parameters()]
    total = 0
    for part, table in enumerate(tables):
        chosen = slice(part * rows // parts, (part + 1) * rows // parts)
        out = loss([z[chosen] for z in latents], None, fusion=fusion, permutations=table)
        (out.loss / parts).backward()
        total = total + out.mipd.detach() / parts
    accumulated = [x.grad for x in leaves]
    table = torch.cat([t + part * rows // parts for part, t in enumerate(tables)], dim=1)
    whole = loss(latents, None, fusion=fusion, permutations=table)
    torch.testing.assert_close(whole.mipd, total)
    torch.testing.assert_close(list(torch.autograd.grad(whole.loss, leaves)), accumulated)


def contrastive_of_parts(parts, rows=64, classes=8, spread=1.0):
    """L_Con and its gradient in embeddings around a mean of their class, `parts` to a batch."""
    labels = torch.arange(rows) % classes
    torch.manual_seed(0)
    centres = torch.randn(classes, 32)
    embeddings = [
        (centres[labels] + spread * torch.randn(rows, 32)).requires_grad_() for _ in range(2)
    ]
    order = torch.randperm(rows).chunk(parts)
    loss = sum(mcr_fast.NTXentLoss()([z[i] for z in embeddings], labels[i]) for i in order) / parts
    return loss.detach(), torch.cat(torch.autograd.grad(loss, embeddings))


def test_contrastive_is_not():
    """The figures of docs/training.md."""
    whole, wanted = contrastive_of_parts(1)
    of_micro_batches = {2: (0.81, 0.89, 1.08), 4: (0.62, 0.78, 1.15), 8: (0.45, 0.68, 1.20)}
    for parts, expected in of_micro_batches.items():
        value, gradient = contrastive_of_parts(parts)
        cosine = torch.cosine_similarity(gradient.flatten(), wanted.flatten(), 0)
        found = (value / whole, cosine, gradient.norm() / wanted.norm())
        assert [x.item() for x in found] == pytest.approx(expected, abs=0.01)


# Compiled


class Model(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.encoders = nn.ModuleList(nn.Linear(D, D) for _ in range(2))
        self.fusion = setting(kind, dtype=torch.float32)[0]
        self.mcr = mcr(num_permutations=2)

    def forward(self, a, b, labels):
        latents = [encode(x).tanh() for encode, x in zip(self.encoders, (a, b), strict=True)]
        return step(self.fusion, latents, labels, self.mcr)


def graphs_of_sizes(model, sizes, backend="aot_eager", **options):
    """How many graphs a step of each size compiles, all of them right."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)
    run = torch.compile(model, backend=counter, **options)
    for rows in sizes:
        a, b = make_latents(rows, 2, rows, D, dtype=torch.float32)
        labels, results = torch.arange(rows) % C, []
        for each in (model, run):
            torch.manual_seed(1)
            total = each(a, b, labels)
            results.append([total, *torch.autograd.grad(total, list(model.parameters()))])
        torch.testing.assert_close(*results)
    return counter.frame_count


def test_a_whole_step_compiles_for_one_size_and_for_all_others():
    assert graphs_of_sizes(Model("linear"), (8, 9, 12, 17, 30), fullgraph=True) == 2


@pytest.mark.parametrize("kind", ["additive_head", "gated"])
def test_a_fusion_that_is_run_breaks_the_graph_as_often_for_many_sizes_as_for_two(kind):
    counts = [graphs_of_sizes(Model(kind), sizes) for sizes in ((8, 9), (8, 9, 12, 17, 30))]
    assert counts[0] == counts[1]


@pytest.mark.parametrize("kind", ["additive_head", "gated"])
def test_where_no_graph_may_break_a_fusion_that_is_run_is_named(kind):
    run = torch.compile(Model(kind), backend="eager", fullgraph=True)
    with pytest.raises(RuntimeError, match="MCRLoss runs this fusion on its own"):
        run(*make_latents(1, 2, N, D, dtype=torch.float32), LABELS)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["default", "reduce-overhead", "max-autotune-no-cudagraphs"])
def test_modes_of_the_compiler(mode):
    torch._dynamo.reset()
    model = Model("linear")
    run = torch.compile(model, mode=mode, fullgraph=True)
    with torch._dynamo.config.patch(recompile_limit=2):
        for rows in (8, 9, 30):
            inputs = (*make_latents(rows, 2, rows, D, dtype=torch.float32), torch.arange(rows) % C)
            results = []
            for each in (model.eval(), run.eval()):  # of one draw
                total = each(*inputs)
                results.append([total, *torch.autograd.grad(total, list(model.parameters()))])
            torch.testing.assert_close(*results)
