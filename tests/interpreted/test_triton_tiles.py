"""The losses over latents in other tiles than tests/suite has in the interpreter."""

import pytest
import torch
from contrastive import make_rows
from suite import checks, tiles
from suite.backends import Backend
from suite.subjects import Embeddings, Reconstruction

pytestmark = pytest.mark.process("interpreted")

TRITON = Backend("triton", "triton", "interpreted")
OPS = pytest.mark.parametrize("op", ["nt_xent", "sup_con"])


@OPS
@pytest.mark.parametrize("temperature", [0.5, pytest.param(0.01, marks=pytest.mark.slow)])
@pytest.mark.parametrize("blocks", [(32, 16), pytest.param((16, 32), marks=pytest.mark.slow)])
def test_shapes_of_tiles(op, blocks, temperature):
    with tiles.small(*blocks):
        checks.bound(Embeddings(op, *make_rows(70, 21, 5), temperature), TRITON)


@OPS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_tiles_of_the_table(op, dtype):
    checks.bound(Embeddings(op, *make_rows(70, 37, 6, dtype)), TRITON)


@pytest.mark.parametrize("widths", [(16,), (100, 3), (1100, 200), (1, 7, 20, 1, 30, 2)])
def test_the_tiles_of_a_reconstruction(widths):
    g = torch.Generator().manual_seed(0)
    *latents, h = (torch.randn(9, d, generator=g).bfloat16() for d in (*widths, sum(widths)))
    checks.bound(Reconstruction(latents, h), TRITON)
