"""nt_xent and sup_con on interpreted Triton kernels, in tiles so small that a batch has many."""

import pytest
import torch
import torch.nn.functional as F
from contrastive import hold_to_bound, make_rows
from tiers import sample
from torch.autograd import forward_ad

from mcr_fast.kernels.config import TABLE, Config
from mcr_fast.kernels.contrastive import exp_sums, panels
from mcr_fast.ops.nt_xent import nt_xent
from mcr_fast.ops.sup_con import sup_con
from mcr_fast.reference.nt_xent import nt_xent_reference
from mcr_fast.reference.sup_con import sup_con_reference

OPS = {"nt_xent": (nt_xent, nt_xent_reference), "sup_con": (sup_con, sup_con_reference)}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
TEMPERATURES = [0.5, 0.01, 0.1]

# rows, width, classes (0: every row its own): aligned, ragged, one class, prime widths, one column
SHAPES = [(64, 32, 6), (65, 37, 6), (2, 3, 1), (40, 8, 1), (33, 1, 3), (70, 53, 7), (90, 16, 40)]
TILES = [(32, 32), (16, 32), (32, 16)]

pytestmark = [pytest.mark.process("interpreted"), pytest.mark.parametrize("op", sorted(OPS))]


@pytest.fixture(autouse=True)
def small_tiles(request, monkeypatch):
    """Several bands and panels of tiles, too; `TILES[0]` unless a test asks for others."""
    block_m, block_n = getattr(request, "param", TILES[0])
    for bits in (16, 32):
        blocks = {"BLOCK_M": block_m, "BLOCK_N": block_n, "BLOCK_K": 32}
        near = {"BLOCK_M": block_m, "BLOCK_N": 16, "BLOCK_K": 32}
        monkeypatch.setitem(TABLE, f"similarity_{bits}", (Config(1, blocks, 4),))
        monkeypatch.setitem(TABLE, f"positives_{bits}", (Config(1, near, 4),))
    rows = Config(1, {"BLOCK_R": 16, "BLOCK_D": 32}, 4)
    monkeypatch.setitem(TABLE, "rows", (rows,))
    sums = Config(1, {"BLOCK_R": 16, "SLOTS": 2}, 4)
    monkeypatch.setitem(TABLE, "partial_sums", (sums,))
    monkeypatch.setattr(exp_sums, "_BAND_TILES", 1)
    monkeypatch.setattr(panels, "_PANEL_BYTES", 0)
    monkeypatch.setattr(panels, "_PANEL_ROWS", (64, 64))


def run(op, x, labels, present=None, temperature=0.5, backend="triton", upstream=1.0):
    x = x.detach().requires_grad_()
    loss = OPS[op][0](x, labels, present, temperature=temperature, backend=backend)
    (grad,) = torch.autograd.grad(loss * upstream, x)
    return loss.detach(), grad


def check(op, x, labels, present=None, temperature=0.5, upstream=1.0):
    ours = run(op, x, labels, present, temperature, upstream=upstream)
    plain = run(op, x, labels, present, temperature, "reference", upstream)
    truth = run(op, x.double(), labels, present, temperature, "reference", upstream)
    case = (list(x.shape), len(labels.unique()), x.dtype, temperature)
    hold_to_bound(op, ours, truth, plain, x, temperature, upstream, case)


@pytest.mark.parametrize("shape", sample(((shape,) for shape in SHAPES), 3), ids=str)
def test_against_the_reference(op, shape):
    for dtype, temperature, masked in zip(DTYPES, TEMPERATURES, (0, 1, 0), strict=True):
        x, labels, present = make_rows(*shape, dtype)
        check(op, x, labels, present if masked else None, temperature)


@pytest.mark.parametrize("small_tiles", TILES, indirect=True)
def test_shapes_of_tiles(op, small_tiles):
    for temperature in (0.5, 0.01):
        x, labels, present = make_rows(70, 21, 5)
        check(op, x, labels, present, temperature)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tiles_of_the_table(op, dtype, monkeypatch):
    monkeypatch.undo()
    x, labels, present = make_rows(70, 37, 6, dtype)
    check(op, x, labels, present)


def test_upstream_gradient(op):
    x, labels, _ = make_rows(35, 17, 4)
    check(op, x, labels, upstream=-2.5)


@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_to_pair(op, rows):
    x, labels, _ = make_rows(rows, 5, 2)
    loss, grad = run(op, x, labels)
    assert loss == 0
    assert grad.shape == (rows, 5)
    assert not grad.any()


def test_no_columns(op):
    x, labels, _ = make_rows(6, 0, 2)
    loss, grad = run(op, x, labels)
    torch.testing.assert_close(loss, run(op, x, labels, backend="reference")[0])
    assert grad.shape == (6, 0)


def test_no_positive_pair(op):
    x, labels, _ = make_rows(40, 8, 0)
    x[7] = torch.nan
    loss, grad = run(op, x, labels)
    assert loss == 0
    assert not grad.any()


def test_absent_rows_do_not_exist(op):
    x, labels, present = make_rows(60, 12, 4)
    loss, grad = run(op, x, labels, present)
    assert not grad[~present].any()
    only, only_grad = run(op, x[present], labels[present])
    torch.testing.assert_close(loss, only)
    torch.testing.assert_close(grad[present], only_grad)
    poisoned = torch.where(present[:, None], x, torch.nan)
    again, again_grad = run(op, poisoned, labels, present)
    assert torch.equal(loss, again)
    assert torch.equal(grad, again_grad)
    for count in (0, 1):
        loss, grad = run(op, x, labels, torch.arange(60) < count)
        assert loss == 0
        assert not grad.any()


def test_non_contiguous(op):
    x, labels, present = make_rows(40, 24, 5)
    expected = run(op, x, labels, present)
    every_second = torch.stack([labels, labels], 1)[:, 0], torch.stack([present] * 3, 1)[:, 1]
    for view in (x.T.contiguous().T, torch.stack([x, x], 1)[:, 1]):
        got = run(op, view, *every_second)
        assert torch.equal(got[0], expected[0])
        assert torch.equal(got[1], expected[1])


@pytest.mark.parametrize(
    ("bad", "temperature"), [(torch.nan, 0.5), (torch.inf, 0.5), (torch.nan, 0.01)]
)
def test_not_finite_in_not_finite_out(op, bad, temperature):
    x, labels, _ = make_rows(40, 7, 3)
    x[20, 3] = bad
    loss, grad = run(op, x, labels, None, temperature)
    assert loss.isnan()
    assert grad.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_embeddings(op, dtype):
    x, labels, _ = make_rows(30, 9, 4, dtype)
    loss, grad = run(op, x, labels)
    half = dtype == torch.float16
    for factor in (2.0**10,) if half else (2.0**60, 2.0**-30, 2.0**120):
        scaled, scaled_grad = run(op, x * factor, labels)
        assert torch.equal(scaled, loss)
        assert scaled_grad.isfinite().all()
        if factor == 2.0**60:
            assert torch.equal(scaled_grad * factor, grad)
    x[3] = 0  # F.normalize: 0, and no projection in its gradient
    truth = run(op, x.double(), labels, backend="reference")
    ours = run(op, x, labels)
    torch.testing.assert_close(ours[0].double(), truth[0], rtol=1e-6, atol=0)
    if not half:  # 1e12 times anything is infinite there
        tolerance = 1e-4 if dtype == torch.float32 else 2e-2
        error = (ours[1].double() - truth[1])[3].norm()
        assert error <= tolerance * truth[1][3].norm()
    copies = x[:1].repeat(30, 1)  # every similarity is its bound
    check(op, copies, labels, None, 0.1)


def test_below_the_clamp_of_the_norm(op):
    x, labels, _ = make_rows(30, 9, 4)
    x *= 1e-13
    ours = run(op, x, labels)
    truth = run(op, x.double(), labels, backend="reference")
    torch.testing.assert_close(ours[0].double(), truth[0], rtol=1e-6, atol=0)
    assert (ours[1] - truth[1]).norm() <= 1e-5 * truth[1].norm()


def test_small_losses_keep_their_digits(op):
    labels = torch.arange(40) % 4
    x = F.one_hot(labels, 4).float() + 1e-3 * torch.randn(40, 4)
    for dtype in (torch.float32, torch.float16):
        # the upstream gradient brings it into float16's range
        truth = run(op, x.to(dtype).double(), labels, None, 0.05, "reference", 1e6)
        loss, grad = run(op, x.to(dtype), labels, None, 0.05, upstream=1e6)
        if op == "nt_xent":
            assert 0 < truth[0] < 1e-6
            assert loss.item() == pytest.approx(truth[0].item(), rel=1e-4)
            assert (grad - truth[1]).norm() <= 2e-2 * truth[1].norm()


@pytest.mark.parametrize("temperature", [0.5, 0.01])
def test_same_bits_every_run(op, temperature):
    x, labels, present = make_rows(50, 20, 6, torch.bfloat16)
    first = run(op, x, labels, present, temperature)
    again = run(op, x, labels, present, temperature)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


def test_reads_no_uninitialised_memory(op, monkeypatch):
    """Every tensor that a launcher leaves empty is full of NaN here."""
    cases = [
        (*make_rows(40, 19, 5, dtype), t) for dtype, t in zip(DTYPES, TEMPERATURES, strict=True)
    ]
    expected = [run(op, *case) for case in cases]
    empty, new_empty = torch.empty_like, torch.Tensor.new_empty

    def fill(tensor):
        return tensor.fill_(torch.nan) if tensor.is_floating_point() else tensor.fill_(-1)

    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: fill(empty(*a, **k)))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: fill(new_empty(*a, **k)))
    for case, (loss, grad) in zip(cases, expected, strict=True):
        again, again_grad = run(op, *case)
        assert torch.equal(loss, again)
        assert torch.equal(grad, again_grad)


def test_value_without_gradient(op):
    x, labels, present = make_rows(40, 20, 6)
    loss, _ = run(op, x, labels, present)
    with torch.no_grad():
        value = OPS[op][0](x, labels, present, temperature=0.5, backend="triton")
    assert torch.equal(value, loss)


def test_backward_twice_and_double_backward(op):
    x, labels, _ = make_rows(20, 6, 4)
    x.requires_grad_()
    loss = OPS[op][0](x, labels, None, temperature=0.5, backend="triton")
    loss.backward(retain_graph=True)
    once = x.grad.clone()
    loss.backward(retain_graph=True)
    assert torch.equal(x.grad, 2 * once)
    (grad,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match=f"{op} cannot be differentiated twice"):
        (loss + grad.square().sum()).backward()


def test_forward_mode_raises(op):
    x, labels, _ = make_rows(20, 6, 4)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, torch.ones_like(x))
        with pytest.raises(NotImplementedError, match="forward mode"):
            OPS[op][0](dual, labels, None, temperature=0.5, backend="triton")


def test_autocast_changes_nothing(op):
    x, labels, _ = make_rows(40, 16, 6)
    expected = run(op, x, labels)
    with torch.autocast("cpu", torch.bfloat16):
        got = run(op, x, labels)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_opcheck(op):
    forward = getattr(torch.ops.mcr_fast, f"{op}_fwd").triton
    backward = getattr(torch.ops.mcr_fast, f"{op}_bwd").triton
    x, labels, present = make_rows(12, 5, 3)
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    for want_grad in (False, True):
        torch.library.opcheck(forward, (x, labels, present, 0.5, want_grad), test_utils=utils)
    loss, unit_grad = forward(x, labels, None, 0.5, True)
    for dtype in (torch.float32, torch.bfloat16):
        torch.library.opcheck(backward, (loss, unit_grad, dtype), test_utils=utils)


def test_compiled_equals_eager(op):
    def step(x, labels, present):
        return OPS[op][0](x, labels, present, temperature=0.5, backend="triton") * 3

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for rows in (30, 36):
        x, labels, present = make_rows(rows, 7, 4, torch.bfloat16)
        results = []
        for function in (step, compiled):
            leaf = x.clone().requires_grad_()
            loss = function(leaf, labels, present)
            loss.backward()
            results.append((loss.detach(), leaf.grad))
        assert torch.equal(results[0][0], results[1][0])
        assert torch.equal(results[0][1], results[1][1])
