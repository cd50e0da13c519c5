"""The tests that every contrastive op passes: subclass and name the op and its reference."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiers import sample
from tolerances import check_gradient, check_value
from torch import Tensor
from torch.autograd import forward_ad

from mcr_fast import env

ROOT = Path(__file__).resolve().parent.parent

needs_library = pytest.mark.skipif(not env.cpu_library_loaded(), reason="no compiled CPU library")

# rows, width, classes (0: every row its own): one or several stripes of 256 rows, classes that
# span stripes, widths that fill no vector
SHAPES = [
    (64, 64, 6),
    (65, 37, 6),
    (2, 3, 1),
    (40, 8, 1),
    (33, 1, 3),
    (70, 53, 7),
    (256, 16, 5),
    (300, 33, 9),
    (700, 64, 2),
    (530, 17, 300),
]
TEMPERATURES = [0.5, 0.1, 0.03, 0.01]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def capabilities() -> list[str]:
    """Instruction sets that run here, from the lowest to the highest."""
    found = []
    for name in ("portable", "avx2", "avx512") if env.cpu_library_loaded() else ():
        active = env.cpu_capability()
        try:
            env.cpu_capability(name)
        except RuntimeError:
            continue
        env.cpu_capability(active)
        found.append(name)
    return found


def run_python(code: str, **variables: str) -> str:
    """What a fresh interpreter prints."""
    return subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        cwd=ROOT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
    ).stdout


def make_rows(rows: int, width: int, classes: int, dtype=torch.float32, seed: int = 0):
    """Embeddings [L, D], labels [L] far apart and not in order, present [L]."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=g, dtype=torch.float64) * 3
    if classes == 0:
        labels = torch.randperm(rows, generator=g) - 5
    else:
        labels = torch.randint(classes, (rows,), generator=g) * 10**12 - 7
    return x.to(dtype), labels, torch.rand(rows, generator=g) > 0.3


def hold_to_bound(name, ours, truth, plain, x, temperature=0.5, upstream=1.0, case=""):
    """Loss and gradient to the embeddings x; ours, the truth, and the reference's in x's dtype."""
    growth = 1 / temperature
    check_value(name, ours[0], truth[0], plain[0], growth=growth, case=case)
    # what one pair of rows contributes; the gradient itself may cancel to 0
    floor = abs(upstream) / (temperature * x.double().norm(dim=1).min() * len(x))
    check_gradient(name, ours[1], truth[1], plain[1], growth=growth, floor=float(floor), case=case)


@needs_library
class ContrastiveTests:
    name: str
    op: Callable[..., Tensor]
    reference: Callable[..., Tensor]

    @pytest.fixture(params=capabilities())
    def capability(self, request):
        """Runs a test once with each instruction set."""
        active = env.cpu_capability()
        yield env.cpu_capability(request.param)
        env.cpu_capability(active)

    def run(self, x, labels, present=None, temperature=0.5, backend="cpu", upstream=1.0):
        """Loss and gradient."""
        x = x.detach().requires_grad_()
        loss = type(self).op(x, labels, present, temperature=temperature, backend=backend)
        (grad,) = torch.autograd.grad(loss * upstream, x)
        return loss.detach(), grad

    def check(self, x, labels, present=None, temperature=0.5, upstream=1.0):
        ours = self.run(x, labels, present, temperature, upstream=upstream)
        plain = self.run(x, labels, present, temperature, "reference", upstream)
        truth = self.run(x.double(), labels, present, temperature, "reference", upstream)
        case = (list(x.shape), len(labels.unique()), x.dtype, temperature)
        hold_to_bound(self.name, ours, truth, plain, x, temperature, upstream, case)

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("shape", sample(((shape,) for shape in SHAPES), 3))
    def test_against_the_reference(self, shape, masked):
        for dtype in DTYPES:
            for temperature in TEMPERATURES if shape[0] < 300 else TEMPERATURES[::3]:
                x, labels, present = make_rows(*shape, dtype)
                self.check(x, labels, present if masked else None, temperature)

    def test_on_every_instruction_set(self, capability):
        for shape in ((65, 37, 6), (300, 33, 9)):
            for temperature in (0.5, 0.01):
                for dtype in DTYPES:
                    x, labels, present = make_rows(*shape, dtype)
                    self.check(x, labels, present, temperature)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_many_rows(self, dtype):
        """bfloat16 products, and more than one tile in a stripe."""
        x, labels, present = make_rows(1500, 96, 11, dtype)
        self.check(x, labels)
        self.check(x, labels, present, 0.02)

    @pytest.mark.slow
    def test_more_rows_than_the_workspace_keeps(self):
        x, labels, _ = make_rows(6400, 8, 40)
        loss, grad = self.run(x, labels)
        x = x.requires_grad_()
        plain = type(self).reference(x, labels, None, 0.5)
        (plain_grad,) = torch.autograd.grad(plain, x)
        torch.testing.assert_close(loss, plain.detach(), rtol=2e-6, atol=0)
        assert (grad - plain_grad).norm() <= 1e-5 * plain_grad.norm()

    @pytest.mark.slow
    def test_production_size(self):
        """The accuracy that the project promises: 2e-6 of the loss, 1e-5 of the gradient."""
        x, labels, _ = make_rows(2048, 512, 101)
        loss, grad = self.run(x, labels)
        truth, truth_grad = self.run(x.double(), labels, backend="reference")
        assert (loss - truth).abs() <= 2e-6 * truth
        assert (grad - truth_grad).norm() <= 1e-5 * truth_grad.norm()

    @pytest.mark.parametrize("dtype", sample([torch.float32, torch.bfloat16], 2))
    def test_memory_is_linear_in_rows(self, dtype):
        """One dense matrix of these rows is 576 MB."""
        code = (
            "import sys; sys.path.insert(0, 'tests')\n"
            f"from {type(self).__module__} import {type(self).__name__}, make_rows, torch\n"
            f"import resource; t = {type(self).__name__}()\n"
            "def peak(rows):\n"
            f"    t.run(*make_rows(rows, 32, 50, {dtype})[:2])\n"
            "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "print(-peak(300) + peak(12000))"
        )
        kilobytes = int(run_python(code))
        assert kilobytes < 150_000

    def test_no_columns(self):
        x, labels, _ = make_rows(6, 0, 2)
        loss, grad = self.run(x, labels)
        truth, _ = self.run(x, labels, backend="reference")
        torch.testing.assert_close(loss, truth)
        assert grad.shape == (6, 0)

    def test_upstream_gradient(self):
        x, labels, _ = make_rows(65, 37, 6)
        self.check(x, labels, upstream=-2.5)

    @pytest.mark.parametrize("rows", [0, 1])
    def test_no_rows_to_pair(self, rows):
        x, labels, _ = make_rows(rows, 5, 2)
        loss, grad = self.run(x, labels)
        assert loss == 0
        assert loss.shape == ()
        assert grad.shape == (rows, 5)
        assert not grad.any()

    def test_no_positive_pair(self):
        x, labels, _ = make_rows(40, 8, 0)
        loss, grad = self.run(x, labels)
        assert loss == 0
        assert not grad.any()

    def test_absent_rows_do_not_exist(self):
        x, labels, present = make_rows(90, 12, 4)
        loss, grad = self.run(x, labels, present)
        assert not grad[~present].any()
        only, only_grad = self.run(x[present], labels[present])
        assert torch.equal(loss, only)
        assert torch.equal(grad[present], only_grad)
        poisoned = torch.where(present[:, None], x, torch.nan)
        assert torch.equal(loss, self.run(poisoned, labels, present)[0])
        for count in (0, 1):
            few = torch.arange(90) < count
            loss, grad = self.run(x, labels, few)
            assert loss == 0
            assert not grad.any()

    def test_non_contiguous(self):
        x, labels, present = make_rows(60, 24, 5)
        expected = self.run(x, labels, present)
        every_second = torch.stack([labels, labels], 1)[:, 0], torch.stack([present] * 3, 1)[:, 1]
        for view in (x.T.contiguous().T, torch.stack([x, x], 1)[:, 1]):
            got = self.run(view, *every_second)
            assert torch.equal(got[0], expected[0])
            assert torch.equal(got[1], expected[1])
        self.check(x[:, :20], labels, present)

    def test_order_of_rows_does_not_matter(self):
        x, labels, _ = make_rows(120, 16, 6, torch.float64)
        order = torch.randperm(120)
        loss, grad = self.run(x, labels)
        shuffled, shuffled_grad = self.run(x[order], labels[order])
        torch.testing.assert_close(shuffled, loss, rtol=1e-13, atol=0)
        torch.testing.assert_close(shuffled_grad, grad[order], rtol=1e-11, atol=1e-15)

    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("temperature", [0.5, 0.02])
    def test_gradcheck(self, temperature, masked):
        x, labels, present = make_rows(9, 4, 3, torch.float64)
        mask = present if masked else None

        def loss(t):
            return type(self).op(t, labels, mask, temperature=temperature, backend="cpu")

        torch.autograd.gradcheck(loss, x.requires_grad_(), eps=1e-7, atol=1e-4)

    @pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
    @pytest.mark.parametrize("temperature", [0.5, 0.01])
    def test_not_finite_in_not_finite_out(self, bad, temperature):
        for rows in (20, 600):
            x, labels, _ = make_rows(rows, 7, 3)
            x[rows // 2, 3] = bad
            loss, grad = self.run(x, labels, None, temperature)
            assert loss.isnan()
            assert grad.isnan().any()

    def test_extreme_embeddings(self):
        x, labels, _ = make_rows(50, 9, 4)
        loss, grad = self.run(x, labels)
        for factor in (2.0**60, 2.0**-30):
            scaled, scaled_grad = self.run(x * factor, labels)
            torch.testing.assert_close(scaled, loss)
            torch.testing.assert_close(scaled_grad * factor, grad)
        x[3] = 0  # F.normalize: 0, and no projection in its gradient
        self.check_zero_row(x, labels)
        copies = x[:1].repeat(50, 1)  # every similarity is its bound
        self.check(copies + 0, labels, None, 0.1)

    @pytest.mark.parametrize("backend", ["cpu", "reference"])
    def test_embeddings_whose_squares_leave_the_range(self, backend):
        x, labels, _ = make_rows(50, 9, 4)
        loss, grad = self.run(x, labels, backend=backend)
        for exponent in (66, 115, -33):  # about 1e20, 4e34, 1e-10
            scaled, scaled_grad = self.run(x * 2.0**exponent, labels, backend=backend)
            torch.testing.assert_close(scaled, loss)
            torch.testing.assert_close(scaled_grad.double() * 2.0**exponent, grad.double())
        tiny = 2.0**-66  # below 1e-12 a norm is clamped
        ours = self.run(x * tiny, labels, backend=backend)
        truth = self.run(x.double() * tiny, labels, backend="reference")
        torch.testing.assert_close(ours[0].double(), truth[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(ours[1].double(), truth[1], rtol=1e-4, atol=1e-3)

    def check_zero_row(self, x, labels):
        truth = self.run(x.double(), labels, backend="reference")
        ours = self.run(x, labels)
        torch.testing.assert_close(ours[0].double(), truth[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(ours[1].double(), truth[1], rtol=1e-4, atol=1e-6)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_same_bits_every_run(self, dtype):
        for rows, temperature in ((65, 0.5), (700, 0.5), (700, 0.01)):
            x, labels, present = make_rows(rows, 40, 6, dtype)
            first = self.run(x, labels, present, temperature)
            for _ in range(3):
                junk = torch.full((rows, rows), torch.nan)
                again = self.run(x, labels, present, temperature)
                assert torch.equal(first[0], again[0])
                assert torch.equal(first[1], again[1])
                del junk

    def test_value_without_gradient(self):
        x, labels, present = make_rows(300, 20, 6)
        loss, _ = self.run(x, labels, present)
        x.requires_grad_()
        with torch.no_grad():
            value = type(self).op(x, labels, present, temperature=0.5, backend="cpu")
        assert not value.requires_grad
        assert torch.equal(value, loss)

    def test_backward_twice(self):
        x, labels, _ = make_rows(30, 6, 4)
        x.requires_grad_()
        loss = type(self).op(x, labels, None, temperature=0.5, backend="cpu")
        loss.backward(retain_graph=True)
        once = x.grad.clone()
        loss.backward()
        assert torch.equal(x.grad, 2 * once)

    def test_double_backward_raises(self):
        x, labels, _ = make_rows(30, 6, 4)
        x.requires_grad_()
        loss = type(self).op(x, labels, None, temperature=0.5, backend="cpu")
        (grad,) = torch.autograd.grad(loss, x, create_graph=True)
        with pytest.raises(RuntimeError, match=f"{self.name} cannot be differentiated twice"):
            (loss + grad.square().sum()).backward()

    def test_forward_mode_raises(self):
        x, labels, _ = make_rows(30, 6, 4)
        with forward_ad.dual_level():
            dual = forward_ad.make_dual(x, torch.ones_like(x))
            with pytest.raises(NotImplementedError, match="forward mode"):
                type(self).op(dual, labels, None, temperature=0.5, backend="cpu")

    def test_autocast_changes_nothing(self):
        x, labels, _ = make_rows(64, 32, 6)
        expected = self.run(x, labels)
        with torch.autocast("cpu", torch.bfloat16):
            for backend in ("cpu", "reference"):
                loss, grad = self.run(x, labels, backend=backend)
                torch.testing.assert_close(loss, expected[0])
                torch.testing.assert_close(grad, expected[1])

    def test_opcheck(self):
        forward = getattr(torch.ops.mcr_fast, f"{self.name}_fwd").default
        backward = getattr(torch.ops.mcr_fast, f"{self.name}_bwd").default
        x, labels, present = make_rows(12, 5, 3)
        for mask in (None, present):
            for want_grad in (False, True):
                torch.library.opcheck(forward, (x, labels, mask, 0.5, want_grad))
        # not the last of opcheck's tests: it differentiates the unit gradient too, which raises
        torch.library.opcheck(
            forward,
            (x.requires_grad_(), labels, None, 0.5, True),
            test_utils=("test_schema", "test_autograd_registration", "test_faketensor"),
        )
        loss, unit_grad = forward(x.detach(), labels, None, 0.5, True)
        for dtype in (torch.float32, torch.bfloat16):
            torch.library.opcheck(backward, (loss, unit_grad, dtype))

    def test_compiled_equals_eager(self):
        def step(x, labels, present):
            return type(self).op(x, labels, present, temperature=0.5, backend="cpu") * 3

        compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
        for rows in (40, 56):
            x, labels, present = make_rows(rows, 7, 4, torch.bfloat16)
            results = []
            for function in (step, compiled):
                leaf = x.clone().requires_grad_()
                loss = function(leaf, labels, present)
                loss.backward()
                results.append((loss.detach(), leaf.grad))
            assert torch.equal(results[0][0], results[1][0])
            assert torch.equal(results[0][1], results[1][1])

    def test_reads_no_uninitialised_memory(self):
        """Fresh memory filled with huge numbers changes nothing."""
        code = (
            "import sys; sys.path.insert(0, 'tests')\n"
            f"from {type(self).__module__} import {type(self).__name__}, make_rows, torch\n"
            f"t = {type(self).__name__}()\n"
            "for rows in (37, 600):\n"
            "  for temperature in (0.5, 0.01):\n"
            "    for dtype in (torch.float32, torch.bfloat16):\n"
            "      x, labels, present = make_rows(rows, 19, 5, dtype)\n"
            "      loss, grad = t.run(x, labels, present, temperature)\n"
            "      print(loss.item(), grad.double().sum().item(), grad.double().norm().item())"
        )
        outputs = [run_python(code), run_python(code, MALLOC_PERTURB_="128")]
        assert outputs[0] == outputs[1]
        assert len(outputs[0].splitlines()) == 8
