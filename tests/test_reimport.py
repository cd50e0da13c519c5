"""The package imported again in one process, as notebooks and reloaders do it.

Each test has a process of its own: an import cannot be taken back.
"""

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
from programs import run_python
from tiers import sample

import mcr_fast

PACKAGE = Path(mcr_fast.__file__).resolve().parent

PREAMBLE = """
import gc, importlib, os, sys, warnings
import torch

warnings.simplefilter("error")
warnings.filterwarnings("ignore", "invalid value", RuntimeWarning)  # interpreted kernels

def import_again():
    for name in [n for n in sys.modules if n.split(".")[0] == "mcr_fast"]:
        del sys.modules[name]
    gc.collect()
    return importlib.import_module("mcr_fast")

BACKENDS = (None, "reference", *["triton"] * ("TRITON_INTERPRET" in os.environ))

def use(package):
    g = torch.Generator().manual_seed(0)
    results = []
    for backend in BACKENDS:
        F = package.functional
        z = [torch.randn(6, 4, generator=g).requires_grad_() for _ in range(2)]
        labels = torch.arange(6) // 2
        table = package.sample_permutations(2, 6, generator=g)
        losses = [
            F.nt_xent(z, labels, backend=backend),
            F.sup_con(z, labels, backend=backend),
            F.permuted_divergence([x[:, :3] for x in z], table, backend=backend).sum(),
            F.row_divergence(z[0], z[1], torch.arange(6), backend=backend),
            F.reconstruction_loss(z, torch.cat(z, 1).detach() * 2, backend=backend),
        ]
        sum(losses).backward()
        results += [x.detach() for x in (*losses, *(x.grad for x in z))]
    return results

def train(package, loss=None):
    torch.manual_seed(0)
    z = [torch.randn(6, 4).requires_grad_() for _ in range(2)]
    linear = torch.nn.Linear(8, 3)
    mcr = loss or package.MCRLoss([4, 4], 3)
    grads = []
    for fusion in (linear, lambda latents: linear(torch.cat(latents, 1))):
        mcr(z, torch.arange(6) // 2, fusion=fusion).loss.backward()
        grads.append(linear.weight.grad.clone())
    return grads

def same(a, b):
    torch.testing.assert_close(a, b, rtol=0, atol=0)
"""

DROPPED = """
import mcr_fast
first, trained, report = use(mcr_fast), train(mcr_fast), mcr_fast.env.report()
del mcr_fast
for _ in range(2):
    again = import_again()
    assert again.env.report() == report
    same(use(again), first)
    same(train(again), trained)
"""

KEPT = """
import mcr_fast
loss = mcr_fast.MCRLoss([4, 4], 3)
first, trained = use(mcr_fast), train(mcr_fast, loss)
again = import_again()
assert again is not mcr_fast
same(use(again), first)
same(use(mcr_fast), first)
same(train(mcr_fast, loss), trained)
same(train(again), trained)

# a sample of the first import is as good, its fusion would be taken for any callable
sample = mcr_fast.sample_permutations(2, 6)
x = torch.randn(2, 6, 3)
divergence = again.functional.permuted_divergence
ours = again.CyclicPermutations(sample.order, sample.shifts)
same([divergence(x, sample)], [divergence(x, ours)])
fusion = mcr_fast.AdditiveFusion([torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)])
z = [torch.randn(6, 4), torch.randn(6, 4)]
loss(z, torch.arange(6), fusion=fusion)
try:
    again.MCRLoss([4, 4], 3)(z, torch.arange(6), fusion=fusion)
    raise AssertionError("not refused")
except TypeError as error:
    assert "earlier import" in str(error), error
"""

RELOADED = """
import mcr_fast
first = use(mcr_fast)
same(use(importlib.reload(mcr_fast)), first)
for name in [n for n in sys.modules if n.startswith("mcr_fast.") and ".kernels" not in n]:
    importlib.reload(sys.modules[name])
same(use(importlib.reload(mcr_fast)), first)
"""

COMPILED = """
import mcr_fast
labels = torch.arange(6) // 2
x = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()

def gradient(package):
    def loss(x):
        return package.functional.nt_xent([x[:6], x[6:]], labels)

    run = torch.compile(loss, backend="aot_eager", fullgraph=True)
    return torch.autograd.grad(run(x), x)

warnings.simplefilter("default")  # the compiler's own
first = gradient(mcr_fast)
same(gradient(import_again()), first)
"""

WITHOUT_LIBRARY = """
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import mcr_fast
    again = import_again()
assert not again.env.cpu_library_loaded()
ours = [w for w in caught if "without compiled kernels" in str(w.message)]
assert len(ours) == 1, caught
same(use(again), use(mcr_fast))
"""


INTERPRETED = {"TRITON_INTERPRET": "1"} if find_spec("triton") else {}
CASES = {
    "dropped": (DROPPED, INTERPRETED),
    "kept": (KEPT, {}),
    "reloaded": (RELOADED, {}),
    "compiled": (COMPILED, {}),
}


@pytest.mark.parametrize(("code", "variables"), sample(CASES.values(), 2), ids=CASES)
def test_imported_again(code, variables, tmp_path):
    run_python("-c", PREAMBLE + code, cwd=tmp_path, **variables)


def test_imported_again_without_a_library(tmp_path):
    shutil.copytree(PACKAGE, tmp_path / "mcr_fast", ignore=shutil.ignore_patterns("*.so", "*.pyc"))
    run_python("-c", PREAMBLE + WITHOUT_LIBRARY, cwd=tmp_path, PYTHONPATH=str(tmp_path))
