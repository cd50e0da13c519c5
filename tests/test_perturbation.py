"""The generic-fusion engine: how often a fusion runs, whose graph is touched, ablations, memory."""

import pytest
import torch
from called import ROWS, C, D, mcr, table_of
from inputs import FUSIONS, generator, make_fusion, make_latents, make_present
from oracle import Oracle
from test_routing import compare
from torch import nn

from mcr_fast._names import DIVERGENCES
from mcr_fast.mipd.draw import draw_noise


class Counted(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner, self.rows = inner, []

    def forward(self, x):
        self.rows.append(len(x[0]) if isinstance(x, list) else len(x))
        return self.inner(x)


@pytest.mark.parametrize("clean_path", ["shared", "routed"])
@pytest.mark.parametrize("num_modalities", [2, 3])
def test_each_subset_runs_once(num_modalities, clean_path):
    case = make_fusion("gated", 1, num_modalities)
    latents = make_latents(2, num_modalities, ROWS)
    fusion = Counted(case.fusion)
    loss = mcr(num_modalities, num_permutations="all", clean_path=clean_path)
    loss(latents, None, fusion=fusion).loss.backward()
    subsets = 2**num_modalities - 2
    # the routed clean path has a gradient for each player, and one for what they share
    clean_again = num_modalities + 1 if clean_path == "routed" else 0
    assert fusion.rows == [ROWS] + [ROWS * (ROWS - 1)] * subsets + [ROWS] * clean_again


def test_chunks_bound_the_rows_of_a_run():
    case = make_fusion("gated", 1, 2)
    latents = make_latents(2, 2, ROWS)
    for chunk_rows, sizes in ((12, {5, 10}), (3, {2, 3, 5})):
        fusion = Counted(case.fusion)
        mcr(2, num_permutations="all", chunk_rows=chunk_rows)(latents, None, fusion=fusion)
        assert set(fusion.rows) == sizes
        assert sum(fusion.rows) == ROWS + 2 * ROWS * (ROWS - 1)


def test_the_head_runs_once_a_subset():
    case = make_fusion("additive_head", 1, 2)
    latents = make_latents(2, 2, ROWS)
    case.fusion.head = Counted(case.fusion.head)
    projections = [Counted(p) for p in case.fusion.projections]
    case.fusion.projections = nn.ModuleList(projections)
    mcr(2, num_permutations="all")(latents, None, fusion=case.fusion).loss.backward()
    assert case.fusion.head.rows == [ROWS] + [ROWS * (ROWS - 1)] * 2
    assert [p.rows for p in projections] == [[ROWS]] * 2


# Ablations


@pytest.mark.parametrize("perturbation", ["zero", "noise"])
@pytest.mark.parametrize(
    ("kind", "num_modalities"),
    [(kind, 2) for kind in FUSIONS] + [("linear", 3), ("additive_head", 3), ("gated", 3)],
)
def test_ablations_against_the_oracle(kind, num_modalities, perturbation):
    count = 1 if perturbation == "zero" else 3
    case = make_fusion(kind, 1, num_modalities)
    latents = make_latents(2, num_modalities, ROWS, length=case.length)
    present = make_present(3, ROWS, num_modalities)
    noise = draw_noise(latents, count, generator(7))

    def replace(m, k, i):
        row = latents[m][i : i + 1]
        return torch.zeros_like(row) if perturbation == "zero" else row + noise[m][k, i]

    table = torch.arange(ROWS).expand(count, ROWS)
    oracle = Oracle(case.oracle, latents, case.owned, table, replace=replace, present=present)
    for routing in (("greedy", "shared"), ("independent", "routed"), ("greedy", "detached")):
        for chunk_rows in (None, 3):
            loss = mcr(
                num_modalities,
                strategy=routing[0],
                clean_path=routing[1],
                perturbation=perturbation,
                num_permutations=3,
                chunk_rows=chunk_rows,
            )
            again = generator(7)
            compare(loss, case, latents, oracle, routing, present=present, generator=again)


def test_noise_has_the_standard_deviation_of_the_batch():
    latents = [torch.randn(50, D) * 3 + 1, torch.randn(50, 2, D) * 0.1]
    for z, noise in zip(latents, draw_noise(latents, 4000, generator(1)), strict=True):
        std = z.std(0, correction=0)
        torch.testing.assert_close(noise.std((0, 1)), std, rtol=0.02, atol=0)
        assert (noise.mean((0, 1)).abs() < 0.02 * std).all()


# Whose graph, and which tensors


def test_two_latents_from_one_node():
    table = table_of()
    case = make_fusion("gated", 1, 2)
    joint = torch.randn(ROWS, 2 * D, dtype=torch.float64, requires_grad=True)
    results = []
    for latents in (joint.chunk(2, 1), (joint[:, :D].clone(), joint[:, D:].clone())):
        loss = mcr(2, strategy="independent", clean_path="routed")
        out = loss(latents, None, fusion=case.fusion, permutations=table)
        results.append(torch.autograd.grad(out.mipd, joint)[0])
    torch.testing.assert_close(results[0], results[1])


def test_logits_of_other_latents_are_refused():
    case, latents = make_fusion("gated", 1, 2), make_latents(2, 2, ROWS)
    others = case.fusion(make_latents(3, 2, ROWS))
    loss = mcr(2, strategy="independent", clean_path="routed")
    with pytest.raises(ValueError, match="logits must be computed from these latents"):
        loss(latents, None, fusion=case.fusion, logits=others)


def test_detached_logits_are_refused_where_they_matter():
    case, latents = make_fusion("gated", 1, 2), make_latents(2, 2, ROWS)
    logits = case.fusion(latents).detach()
    with pytest.raises(ValueError, match="but they are detached"):
        mcr(2, strategy="independent")(latents, None, fusion=case.fusion, logits=logits)
    # greedy with two modalities: head(S) is 0, nothing flows along the clean path
    table = table_of()
    grads = []
    for given in (logits, None):
        loss = mcr(2)
        out = loss(latents, None, fusion=case.fusion, logits=given, permutations=table)
        grads.append(torch.autograd.grad(out.mipd, latents))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("kind", ["linear", "additive_head", "gated"])
def test_a_row_without_any_modality_may_hold_anything(kind, bad):
    present = torch.ones(ROWS, 2, dtype=torch.bool)
    present[3] = False
    results = []
    for value in (0.0, bad):
        case, latents = make_fusion(kind, 1, 2), make_latents(2, 2, ROWS)
        with torch.no_grad():
            for z in latents:
                z[3] = value
        loss = mcr(2, num_permutations="all", clean_path="detached")
        out = loss(latents, None, fusion=case.fusion, present=present)
        out.mipd.backward()
        results.append([out.divergences, *(z.grad[present[:, 0]] for z in latents)])
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", ["linear", "additive_head", "gated"])
def test_upstream_gradient_and_second_backward(kind):
    case, latents = make_fusion(kind, 1, 2), make_latents(2, 2, ROWS)
    loss = mcr(2, num_permutations="all")
    grads = torch.autograd.grad(loss(latents, None, fusion=case.fusion).mipd, latents)
    scaled = torch.autograd.grad(-3 * loss(latents, None, fusion=case.fusion).mipd, latents)
    for a, b in zip(grads, scaled, strict=True):
        torch.testing.assert_close(-3 * a, b)
    mipd = loss(latents, None, fusion=case.fusion).mipd
    first = torch.autograd.grad(mipd, latents, retain_graph=True)
    again = torch.autograd.grad(mipd, latents)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("kind", ["additive_head", "gated"])
def test_finite_differences_where_the_gradient_is_a_true_one(kind, divergence):
    case, latents = make_fusion(kind, 1, 3, 2), make_latents(2, 3, 3, 2)
    options = {"num_permutations": "all", "divergence": divergence, "chunk_rows": 4}
    loss = mcr(3, width=2, strategy="collaborative", **options)
    torch.autograd.gradcheck(lambda *z: loss(list(z), None, fusion=case.fusion).mipd, latents)


def test_memory_does_not_grow_with_the_permutations():
    """What a fusion run saves for its backward is freed before the next run.

    No operation that saves its own output: under these hooks torch never frees such a thing.
    """
    latents = make_latents(2, 2, 16)
    weight = make_latents(3, 1, D, C)[0]
    alive, peak = 0, []

    def pack(x):
        nonlocal alive
        alive += x.numel()
        peak.append(alive)
        return Held(x)

    class Held:
        def __init__(self, x):
            self.x = x

        def __del__(self):
            nonlocal alive
            alive -= self.x.numel()

    peaks = []
    for count in (2, 15):
        loss = mcr(2, num_permutations=count, chunk_rows=16, subsets="single")
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.x):
            out = loss(latents, None, fusion=lambda z: (z[0] * z[1]) @ weight)
        peaks.append(max(peak))
        peak.clear()
        del out
    assert peaks[0] == peaks[1]


def test_attach_op():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    grads = [torch.arange(3.0, dtype=torch.float64), torch.ones(2, 2)]
    inputs = [x, torch.randn(2, 2, dtype=torch.bfloat16, requires_grad=True)]
    value = torch.tensor(2.0)
    torch.library.opcheck(torch.ops.mcr_fast.attach_gradients.default, (value, inputs, grads))
    out = torch.ops.mcr_fast.attach_gradients(value, inputs, grads)
    assert out == value
    (3 * out).backward()
    for x, grad in zip(inputs, grads, strict=True):
        assert torch.equal(x.grad, (3 * grad).to(x.dtype))


def test_forward_mode_is_refused():
    case, latents = make_fusion("gated", 1, 2), make_latents(2, 2, ROWS)
    with torch.autograd.forward_ad.dual_level():
        duals = [torch.autograd.forward_ad.make_dual(z, torch.ones_like(z)) for z in latents]
        with pytest.raises(NotImplementedError, match="no forward-mode derivative"):
            mcr(2)(duals, None, fusion=case.fusion)


@pytest.mark.parametrize("kind", ["additive_head", "gated"])
def test_float32_is_close_to_float64(kind):
    results = []
    for dtype in (torch.float32, torch.float64):
        case = make_fusion(kind, 1, 2, 16, torch.float32)
        latents = make_latents(2, 2, 64, 16, dtype=torch.float32)
        latents = [z.detach().to(dtype).requires_grad_() for z in latents]
        fusion = case.fusion.to(dtype)
        loss = mcr(2, width=16, num_permutations=16, strategy="independent", chunk_rows=200)
        out = loss(latents, None, fusion=fusion, generator=generator(1))
        out.mipd.backward()
        grads = [x.grad for x in [*latents, *fusion.parameters()]]
        results.append((out.divergences, torch.cat([g.reshape(-1).double() for g in grads])))
    (values, grads), (true_values, true_grads) = results
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), true_values, rtol=2e-6, atol=0)
    assert (grads - true_grads).norm() <= 1e-5 * true_grads.norm()


@pytest.mark.parametrize("kind", ["additive_head", "gated"])
def test_donors_that_nobody_read_give_nan(kind, monkeypatch):
    """What a GPU is not asked about: a table with a donor twice or out of range, on every path."""
    monkeypatch.setattr("mcr_fast._checks.permutations.may_read", lambda x: False)
    monkeypatch.setattr("mcr_fast.mipd.pairs.READ_AT_THE_EDGE", ())
    good = torch.stack([torch.randperm(ROWS, generator=generator(1)) for _ in range(2)])
    for bad in (None, (0, 0, good[0, 1]), (1, 2, ROWS + 7), (1, 0, -3)):
        case, latents = make_fusion(kind, 1, 2), make_latents(2, 2, ROWS)
        table = good.clone()
        if bad is not None:
            table[bad[0], bad[1]] = bad[2]
        loss = mcr(2, strategy="independent", clean_path="routed", chunk_rows=4)
        out = loss(latents, None, fusion=case.fusion, permutations=table)
        out.mipd.backward()
        grads = [x.grad for x in [*latents, *case.fusion.parameters()] if x.grad is not None]
        for x in [out.divergences, out.mipd, *grads]:
            assert x.isnan().all() if bad is not None else not x.isnan().any()
