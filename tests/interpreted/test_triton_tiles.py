"""The losses over latents in other tiles than tests/suite has in the interpreter."""

import math
import random

import pytest
import torch
from contrastive import make_rows
from divergences import assert_same_bits
from suite import checks, tiles
from suite.backends import Backend
from suite.subjects import Embeddings, Reconstruction
from tiers import sample

from mcr_fast.kernels import config
from mcr_fast.kernels.contrastive import panels

pytestmark = pytest.mark.process("interpreted")

TRITON = Backend("triton", "triton", "interpreted")
OPS = pytest.mark.parametrize("op", ["nt_xent", "sup_con"])


@OPS
@pytest.mark.parametrize("temperature", [0.5, pytest.param(0.01, marks=pytest.mark.slow)])
@pytest.mark.parametrize("blocks", [(32, 16), pytest.param((16, 32), marks=pytest.mark.slow)])
@pytest.mark.parametrize("width", [21, pytest.param(22, marks=pytest.mark.slow)])  # large, small
def test_shapes_of_tiles(op, blocks, temperature, width):
    with tiles.small(*blocks):
        checks.bound(Embeddings(op, *make_rows(70, width, 5), temperature), TRITON)


@OPS
@pytest.mark.parametrize("seed", sample(range(16), 8))
def test_panels_of_any_batch(op, seed):
    """Several panels of H or one, the last of them smaller; above the diagonal and on it."""
    draw = random.Random(f"{op} {seed}")
    rows, width = draw.randint(1, 230), draw.randint(1, 40)
    dtype = draw.choice([torch.float32, torch.bfloat16, torch.float16])
    x, labels, present = make_rows(rows, width, draw.choice([0, 1, 3, 1 + rows // 2]), dtype, seed)
    present = draw.choice([None, present, torch.arange(rows) < rows // 3])
    subject = Embeddings(op, x, labels, present, draw.choice([0.5, 0.01]))
    with (
        tiles.small(*draw.choice([(32, 32), (16, 64), (64, 16)])),
        pytest.MonkeyPatch.context() as m,
    ):
        m.setattr(config, "is_small_contrastive", lambda *_: False)
        checks.bound(subject, TRITON)


@pytest.mark.parametrize("step", [64, 256])
@pytest.mark.parametrize("itemsize", [2, 4])
def test_sides_of_panels(step, itemsize):
    largest = math.isqrt(panels._PANEL_BYTES // itemsize) // step * step
    for rows in range(step, 40000, step):
        side = panels._panel_side(rows, step, itemsize)
        count = -(-rows // side)
        assert side % step == 0
        assert side <= largest
        assert side * (count - 1) < rows, "an empty panel"
        assert count <= -(-rows // largest), "more panels than there must be"


@OPS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("limits", [(0, 0), (1024, 4096)], ids=["large", "small"])
def test_the_tiles_of_the_table(op, dtype, limits, monkeypatch):
    monkeypatch.setattr(config, "SMALL_CONTRASTIVE", limits)
    checks.bound(Embeddings(op, *make_rows(70, 37, 6, dtype)), TRITON)


@OPS
@pytest.mark.parametrize("limits", [(0, 0), (1024, 4096)], ids=["large", "small"])
def test_opposite_classes(op, limits, monkeypatch):
    """Rows whose largest logit is the least there is, beside rows that only fill up a tile."""
    monkeypatch.setattr(config, "SMALL_CONTRASTIVE", limits)
    labels = torch.arange(5) % 2
    x = (1.0 - 2.0 * labels)[:, None] * torch.ones(5, 3)
    checks.bound(Embeddings(op, x, labels, None, 0.01), TRITON)


@OPS
@pytest.mark.parametrize("limits", [(0, 0), (1024, 4096)], ids=["large", "small"])
def test_what_all_modalities_share_is_given_once(op, limits, monkeypatch):
    monkeypatch.setattr(config, "SMALL_CONTRASTIVE", limits)
    x, labels, present = torch.randn(3 * 7, 5), torch.arange(7) % 2, torch.rand(7, 3) < 0.7
    run = getattr(torch.ops.mcr_fast, f"{op}_fwd").triton
    alone = run(x, labels.repeat(3), present.T.reshape(-1), 0.5, True)
    assert_same_bits(run(x, labels, present, 0.5, True), alone)
    for wrong in (labels[:6], labels.repeat(2)):
        with pytest.raises(ValueError, match="labels must"):
            run(x, wrong, None, 0.5, True)
    with pytest.raises(ValueError, match="present must"):
        run(x, labels, present.T, 0.5, True)


@pytest.mark.parametrize("widths", [(16,), (100, 3), (1100, 200), (1, 7, 20, 1, 30, 2)])
def test_the_tiles_of_a_reconstruction(widths):
    g = torch.Generator().manual_seed(0)
    *latents, h = (torch.randn(9, d, generator=g).bfloat16() for d in (*widths, sum(widths)))
    checks.bound(Reconstruction(latents, h), TRITON)
