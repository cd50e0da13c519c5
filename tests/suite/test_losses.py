"""What the losses over latents show in no case of the suite: of the reference, and of memory."""

import contextlib
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from contrastive import make_rows, needs_library
from tiers import sample

from mcr_fast.reference.nt_xent import nt_xent_reference
from mcr_fast.reference.reconstruction_loss import reconstruction_loss_reference
from mcr_fast.reference.sup_con import sup_con_reference
from suite import cases, subjects

REFERENCES = {"nt_xent": nt_xent_reference, "sup_con": sup_con_reference}


def terms(op, x, labels, present, temperature):
    """What the loss is a mean of, in Python floats: a pair's, or an anchor's."""
    rows = range(len(x)) if present is None else present.nonzero().flatten().tolist()
    z = F.normalize(x.double(), dim=1)
    s = (z @ z.T / temperature).tolist()
    labels = labels.tolist()
    for a in rows:
        positives = [p for p in rows if p != a and labels[p] == labels[a]]
        if op == "nt_xent":
            negatives = [n for n in rows if labels[n] != labels[a]]
            for p in positives:
                yield math.log1p(math.fsum(math.exp(s[a][n] - s[a][p]) for n in negatives))
        elif positives:
            log_all = math.log(math.fsum(math.exp(s[a][j]) for j in rows if j != a))
            yield -math.fsum(s[a][p] - log_all for p in positives) / len(positives)


@pytest.mark.parametrize("op", REFERENCES)
@pytest.mark.parametrize("shape", [(0, 3, 1), (1, 3, 1), (2, 3, 2), (9, 4, 3), (12, 4, 1)])
@pytest.mark.parametrize("masked", [False, True])
def test_contrastive_reference_is_the_formula(op, shape, masked):
    x, labels, present = make_rows(*shape, torch.float64)
    present, reference = present if masked else None, REFERENCES[op]
    found = list(terms(op, x, labels, present, 0.5))
    expected = pytest.approx(math.fsum(found) / max(len(found), 1), rel=1e-12, abs=1e-15)
    assert reference(x, labels, present, 0.5).item() == expected
    x.requires_grad_()
    torch.autograd.gradcheck(lambda t: reference(t, labels, present, 0.5), x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_reconstruction_reference_is_the_formula(dtype):
    *latents, h = (torch.randn(6, d, dtype=torch.float64).to(dtype) for d in (3, 5, 8))
    loss = reconstruction_loss_reference(latents, h)
    expected = F.mse_loss(h.double(), torch.cat(latents, 1).double())
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)
    assert reconstruction_loss_reference([torch.ones(0, 3)], torch.ones(0, 3)) == 0


PEAK = """
import resource, torch
from contrastive import make_rows
from suite.subjects import Embeddings
def peak(rows):
    for op in ("nt_xent", "sup_con"):
        subject = Embeddings(op, *make_rows(rows, 32, 50, {dtype})[:2])
        subject.run("cpu", subject.upstream())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(-peak(300) + peak(9000))
"""


@needs_library
@pytest.mark.parametrize("dtype", sample([torch.float32, torch.bfloat16], 2))
def test_memory_is_linear_in_rows(dtype):
    """One dense matrix of these rows is 324 MB."""
    tests = Path(__file__).resolve().parent.parent
    paths = os.pathsep.join([str(tests), str(tests.parent)])
    kilobytes = subprocess.run(
        [sys.executable, "-c", PEAK.format(dtype=dtype)],
        check=True,
        cwd=tests.parent,
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    ).stdout
    assert int(kilobytes) < 150_000


def case_of(op, start):
    return next(c for c in cases.every() if c.op == op and c.name.startswith(start))


@pytest.mark.parametrize("op", REFERENCES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "tf32"])
def test_panels_of_rows(op, dtype):
    # kernels/contrastive/panels.py: of 4096 rows at most
    found = [c for c in cases.every() if c.op == op and {"panels", dtype} <= {*c.name.split("_")}]
    assert found
    assert all(c.work > 4096**2 for c in found)  # of so many pairs of rows


@pytest.mark.parametrize("op", REFERENCES)
def test_products_in_tf32_are_held_to_those_of_torch(op, monkeypatch):
    seen = []

    def loss(x, *rest, backend, **options):
        seen.append((backend, torch.get_float32_matmul_precision()))
        # as tf32 would: operands with 10 bits behind the point, in ours and in plain torch alike
        if x.dtype == torch.float32 and (backend == "tf32" or seen[-1][1] == "high"):
            x = x + (x.half() - x).detach()
        if backend == "wrong":
            x = x + (x.bfloat16() - x).detach()
        return right(x, *rest, backend="reference", **options)

    right = subjects.LOSSES[op]
    monkeypatch.setitem(subjects.LOSSES, op, loss)
    subject = case_of(op, "tf32").make()
    subject.check("tf32")
    assert {precision for _, precision in seen} == {"high"}
    assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(AssertionError):
        subject.check("wrong")
    # a backend that rounds so is wrong where nobody asked for it
    monkeypatch.setattr(subjects, "product_precision", lambda _: contextlib.nullcontext())
    with pytest.raises(AssertionError):
        subject.check("tf32")
