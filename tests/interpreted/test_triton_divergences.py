"""What is inside of Triton's launchers of the divergences; tests/suite has all that callers see."""

import functools

import divergences
import pytest
import torch
from divergences import call, make_batch
from launches import counting
from suite.cases import pairwise
from tiers import sample

from mcr_fast._names import DIVERGENCES, OF_LOGITS
from mcr_fast.kernels import config
from mcr_fast.kernels import permuted_divergence as kernels
from mcr_fast.kernels.pairs.permutations import checked_permutations
from mcr_fast.kernels.row_divergence import NOTES, row_divergence_bwd, row_divergence_fwd
from mcr_fast.ops import row_divergence as op

pytestmark = pytest.mark.process("interpreted")
run = functools.partial(divergences.run, backend="triton")


@pytest.fixture
def large(monkeypatch):
    """Every batch takes the kernels of a large one."""
    monkeypatch.setattr(config, "SMALL_ROWS", 0)


def test_what_is_small():
    assert config.is_small(2, 256, 32, 174)
    assert config.is_small(254, 32, 31, 6)
    assert not config.is_small(2, 257, 32, 6)
    assert not config.is_small(254, 256, 255, 4096), "its notes would take 2 GB"


def test_permutations_cut_into_parts(large, monkeypatch):
    x = make_batch(2, 17, 6, count=3)
    assert config.parts(2, 3) == (3, 1)
    assert config.parts(300, 3) == (1, 3)
    cut = run(x)
    monkeypatch.setattr(config, "PROGRAMS", 1)
    whole = run(x)
    for a, b in zip(cut, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("divergence", sample(OF_LOGITS, 2))
def test_no_pair_is_below_0(divergence, large, monkeypatch):
    """Rows a rounding apart: what one pair has too little is not taken from another's."""
    x = make_batch(2, 5, 6, "table", count=6, bias=False)
    x.contributions = 1 + 1e-7 * x.contributions
    ways = (functools.partial(run, x), lambda **o: [call(x, "triton", **o)])
    assert config.parts(1, 6) == (6, 1)
    pair_by_pair = [way(divergence=divergence)[0] for way in ways]
    monkeypatch.setattr(config, "PROGRAMS", 1)  # a program has all pairs of its rows
    row_by_row = [way(divergence=divergence)[0] for way in ways]
    torch.testing.assert_close(row_by_row, pair_by_pair, rtol=1e-5, atol=0)


MASKS = {"own": True, "present": True, "weighted": True}
BATCHES = {
    "table, more permutations than lanes": make_batch(2, 7, 6, "table", count=35),
    "cyclic, own donors, masks": make_batch(3, 9, 20, "cyclic", count=4, **MASKS),
    "table, own donors, masks": make_batch(3, 5, 70, "table", count=3, **MASKS),
    "exhaustive, no bias": make_batch(2, 6, 9, "exhaustive", bias=False),
    "masked weights": make_batch(2, 8, 6, "cyclic", count=3, weighted=True),
}
OPTIONS = {
    "single": {"subsets": "single", "strategy": "greedy", "exclude": "self"},
    "all": {"subsets": "all", "strategy": "collaborative", "exclude": "same_label"},
    "routed": {"subsets": "all", "strategy": "independent", "clean_path": "routed"},
}


@pytest.mark.parametrize(
    ("batch", "options", "divergence"),
    sample((combination for _, combination in pairwise(BATCHES, OPTIONS, DIVERGENCES)), 7),
)
def test_small_and_large_batches_are_one_function(batch, options, divergence, monkeypatch):
    x, options = BATCHES[batch], OPTIONS[options] | {"divergence": divergence}
    values = call(x, "triton", **options)
    found = run(x, **options)
    # without a gradient the two halves of a value are added up pair by pair
    torch.testing.assert_close(found[0], values, rtol=2e-6, atol=0)
    monkeypatch.setattr(config, "SMALL_ROWS", 0)
    for ours, theirs in zip(found, run(x, **options), strict=True):
        scale = theirs.abs().max().item()
        torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-6 * scale)


@pytest.mark.parametrize("equal", sample([False, True], 2))
def test_upstream_gradients_of_a_small_batch(equal):
    """Equal numbers in memory scale the unit gradient, as one number behind a stride of 0 does."""
    x = make_batch(2, 5, 6, "cyclic", count=3)
    x.contributions.requires_grad_()
    x.bias.requires_grad_()
    leaves = [x.contributions, x.bias]
    values = call(x, "triton", strategy="independent")
    upstream = torch.tensor([0.3, 0.3 if equal else -0.5])
    found = torch.autograd.grad(values, leaves, upstream, retain_graph=True)
    ones = torch.eye(2)
    if equal:
        wanted = torch.autograd.grad(values, leaves, upstream[:1].expand(2), retain_graph=True)
        for ours, theirs in zip(found, wanted, strict=True):
            assert torch.equal(ours, theirs)
    else:
        each = [torch.autograd.grad(values, leaves, one, retain_graph=True) for one in ones]
        for ours, first, second in zip(found, *each, strict=True):
            torch.testing.assert_close(ours, 0.3 * first - 0.5 * second, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("scheme", sample(["table", "cyclic"], 2))
def test_no_permutation_is_nan_in_every_number(scheme):
    """Also in the rows of the gradient that a wrong order leaves out."""
    x = make_batch(2, 6, 5, scheme, count=3)
    known = run(x)
    assert all(t.isfinite().all() for t in known)
    broken = x.order if scheme == "cyclic" else x.donors[0, 1]
    for wrong in (broken[1].item(), 6, -1, 1 << 40):
        before = broken[0].item()
        broken[0] = wrong
        assert all(t.isnan().all() for t in run(x))
        broken[0] = before
    if scheme == "cyclic":
        for wrong in (0, 6, -1):
            x.donors[0, 2] = wrong
            assert all(t.isnan().all() for t in run(x))


NAMES = {"strategy": "selfish", "clean_path": "cut", "divergence": "kl", "exclude": "all"}


@pytest.mark.parametrize("name", NAMES)
def test_unknown_names_are_refused(name):
    known = {"strategy": "greedy", "clean_path": "shared", "divergence": "jsd", "exclude": "none"}
    x, bias = torch.randn(2, 4, 3), torch.zeros(3)
    given = [x, bias, None, None, None, None, None, [1, 2], *(known | {name: NAMES[name]}).values()]
    message = f"{name} must be one of '{known[name]}'.*, got '{NAMES[name]}'"
    with pytest.raises(ValueError, match=message):
        kernels.permuted_divergence_fwd(*given, False)
    with pytest.raises(ValueError, match=message):
        kernels.permuted_divergence_bwd(torch.ones(2), x, bias, *given)
    if name == "divergence":
        with pytest.raises(ValueError, match=message):
            row_divergence_fwd(x[0], x[1], torch.arange(4), None, "kl", False, False, True)


ROWS = {
    "plain": lambda w, z: (w, z),
    "near": lambda w, z: (z[0] + 1e-3 * w, z),
    "apart": lambda w, z: (w + 40.0, z),
    "masks": lambda w, z: (w.masked_fill(w > 2, -3e38), z.masked_fill(z > 3, -3e38)),
    "beyond": lambda w, z: (w, z.index_fill(0, torch.tensor([1]), 3e38)),
}


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_a_gradient_made_of_notes_is_the_one_kept(divergence, kind):
    x = divergences.make_rows(40, 7, 24, weighted=True)
    w, z = ROWS[kind](x.perturbed, x.clean)
    rest = x.rows, x.row_weight, divergence
    grad = torch.tensor(-2.5)
    grads = []
    for notes in (False, True):
        total, weight, *kept = row_divergence_fwd(w, z, *rest, True, notes, True)
        assert kept[0].shape == ((40, op.NOTES) if notes else w.shape)
        grads.append(row_divergence_bwd(grad, weight, *kept, w, z, *rest, notes))
    torch.testing.assert_close(grads[1], grads[0], rtol=3e-6, atol=1e-8)
    assert grads[0][0].any()
    assert NOTES.value == op.NOTES


@pytest.mark.parametrize("rows", [1, 5, 4096, 4100])
def test_checked_permutations(rows):
    given = torch.rand(3, rows).argsort(-1)
    safe, inverse, _, poison = checked_permutations(given)
    assert torch.equal(safe, given)
    assert torch.equal(inverse, given.argsort(-1))
    assert poison == 0
    given[1, rows - 1] = given[1, 0] if rows > 1 else 1
    safe, inverse, _, poison = checked_permutations(given)
    assert poison.isnan()
    assert torch.equal(safe[1], torch.arange(rows))
    assert torch.equal(inverse, safe.argsort(-1))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("scheme", ["cyclic", "table", "exhaustive"])
def test_launches_of_a_small_batch(scheme, masked):
    """Two forward, one backward; two where upstream gradients in memory may differ."""
    x = make_batch(3, 64, 6, scheme, count=4, present=masked)
    exclude = "same_label" if masked else "none"
    x.contributions.requires_grad_()
    x.bias.requires_grad_()
    names = ["small_own_side", "small_donor_side"]
    both = {f"_{name}_kernel": 1 for name in names}
    with counting("triton") as count:
        forward = functools.partial(call, x, "triton", exclude=exclude, subsets="all")
        assert count(forward) == both
        with torch.no_grad():
            assert count(forward) == both
        values = forward()
        for upstream, wanted in (
            (torch.ones(()).expand(6), {"_scale_or_take_kernel": 1}),
            (torch.ones(6), both),
        ):
            leaves = [x.contributions, x.bias]
            backward = functools.partial(
                torch.autograd.grad, values, leaves, upstream, retain_graph=True
            )
            assert count(backward) == wanted
