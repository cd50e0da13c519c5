"""torch.jit: tracing works, scripting is refused in words; torch.export works."""

import pytest
import torch
from losses import LOSSES

import mcr_fast
from mcr_fast import functional as F

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]

N, D, C = 6, 4, 3
LABELS = torch.arange(N) // 2


class Scripted(torch.nn.Module):
    def forward(self, x: torch.Tensor):
        return F.nt_xent([x, x])


class Owner(torch.nn.Module):
    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def forward(self, x: torch.Tensor):
        return x


@pytest.mark.parametrize("name", F.__all__)
def test_a_function_is_not_scripted(name):
    with pytest.raises(RuntimeError, match=f"functional.{name} cannot be compiled by torch.jit.sc"):
        torch.jit.script(getattr(F, name))


def test_nor_what_calls_it():
    with pytest.raises(RuntimeError, match="functional.nt_xent cannot be compiled by torch.jit.sc"):
        torch.jit.script(Scripted())


@pytest.mark.parametrize(
    "loss", [mcr_fast.NTXentLoss(), mcr_fast.SupConLoss(), mcr_fast.MCRLoss([D, D], C)]
)
def test_nor_a_module(loss):
    for module in (loss, Owner(loss)):
        with pytest.raises(RuntimeError, match="Loss cannot be compiled by torch.jit.script"):
            torch.jit.script(module)


def losses(a, b):
    return sum(loss(a, b) for loss in LOSSES.values())


def gradient(f, a, b):
    a = a.clone().requires_grad_()
    f(a, b).backward()
    return a.grad


def test_traced():
    a, b = torch.randn(2, N, D).unbind()
    traced = torch.jit.trace(losses, (a, b))
    a, b = torch.randn(2, N, D).unbind()
    torch.testing.assert_close(traced(a, b), losses(a, b))
    # traced without gradients, called with them
    torch.testing.assert_close(gradient(traced, a, b), gradient(losses, a, b))


def test_a_check_of_values_leaves_no_constant_in_a_trace():
    table = torch.stack([torch.arange(N).roll(1)])
    traced = torch.jit.trace(
        lambda x, table: F.permuted_divergence(x, table), (torch.randn(2, N, C), table)
    )
    x = torch.randn(2, N, C)
    torch.testing.assert_close(traced(x, table.roll(2)), F.permuted_divergence(x, table.roll(2)))


class Regularized(torch.nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.fusion = torch.nn.Linear(2 * D, C)
        self.mcr = mcr_fast.MCRLoss([D, D], C, **({"num_permutations": "all"} | options))

    def forward(self, a, b, labels):
        out = self.mcr([a, b], labels, fusion=self.fusion)
        return out.loss, out.logits


@pytest.mark.parametrize("strict", [False, True])
def test_exported(strict):
    model, inputs = Regularized(), (torch.randn(N, D), torch.randn(N, D), LABELS)
    program = torch.export.export(model, inputs, strict=strict)
    inputs = (torch.randn(N, D), torch.randn(N, D), LABELS.flip(0))
    torch.testing.assert_close(program.module()(*inputs), model(*inputs))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_with_a_dynamic_batch(strict):
    """In eval mode nothing random is in the program."""
    model = Regularized(num_permutations=2, ceb_weight=0.5).eval()
    inputs = (torch.randn(N, D), torch.randn(N, D), LABELS)
    rows = {0: torch.export.Dim("rows", min=4)}  # one more than has shifts to draw from
    program = torch.export.export(model, inputs, strict=strict, dynamic_shapes=(rows,) * 3)
    inputs = (torch.randn(9, D), torch.randn(9, D), torch.arange(9) % C)
    torch.testing.assert_close(program.module()(*inputs), model(*inputs))


@pytest.mark.parametrize("strict", [False, True])
def test_exported_without_gradients_and_called_with_them(strict):
    model = Regularized()
    inputs = (torch.randn(N, D), torch.randn(N, D), LABELS)
    program = torch.export.export(model, inputs, strict=strict)
    inputs = (torch.randn(N, D, requires_grad=True), torch.randn(N, D), LABELS.flip(0))
    results = []
    for run in (model, program.module()):
        loss, _ = run(*inputs)
        results.append((loss, *torch.autograd.grad(loss, inputs[:1])))
    torch.testing.assert_close(*results)


class Head(Regularized):
    """Whose fusion has to be run."""

    def __init__(self):
        super().__init__()
        seq = torch.nn.Sequential(self.fusion, torch.nn.Tanh(), torch.nn.Linear(C, C))
        self.fusion = mcr_fast.AdditiveFusion.from_sequential(seq, [D, D])


@pytest.mark.parametrize("way", ["strict export", "export", "trace"])
def test_a_fusion_that_is_run_is_no_program(way):
    """Its gradient is taken inside the forward, and would be a constant of the program."""
    model, inputs = Head(), (torch.randn(N, D), torch.randn(N, D), LABELS)

    def made():
        if way == "trace":
            return torch.jit.trace(model, inputs, check_trace=False)
        return torch.export.export(model, inputs, strict=way == "strict export").module()

    with pytest.raises(RuntimeError, match="MCRLoss runs this fusion on its own"):
        made()
    model.mcr.mipd_weight = 0.0
    torch.testing.assert_close(made()(*inputs), model(*inputs))


def test_functions_exported_with_a_dynamic_batch():
    class Losses(torch.nn.Module):
        def forward(self, a, b, labels):
            drawn = mcr_fast.sample_permutations(2, a.shape[0], num_modalities=2, device=a.device)
            every = F.permuted_divergence([a, b])
            return F.nt_xent([a, b], labels) + every.sum(), F.permuted_divergence([a, b], drawn)

    rows = {0: torch.export.Dim("rows", min=4)}
    program = torch.export.export(
        Losses(),
        (torch.randn(N, D), torch.randn(N, D), LABELS),
        dynamic_shapes={"a": rows, "b": rows, "labels": rows},
    )
    inputs = (torch.randn(9, D), torch.randn(9, D), torch.arange(9) % 4)
    loss, drawn = program.module()(*inputs)
    torch.testing.assert_close(loss, Losses()(*inputs)[0])
    assert (drawn > 0).all()
