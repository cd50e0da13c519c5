"""Random options, sizes and masks: all ways to evaluate one linear fusion must agree.

The kernel, the reference, and the engine: with the layer as an additive fusion that has a head, and
as a mere callable, whose weight belongs to nobody (so only that gradient differs). They share no
code for the gradient. A seed that fails is added to SEEDS with the reason.
"""

import random

import pytest
import torch
from inputs import generator, make_present
from tiers import sample
from torch import nn

import mcr_fast
from mcr_fast._names import DIVERGENCES, OF_SOFTMAX

SEEDS = range(60)


def draw(seed):
    """Options of MCRLoss, inputs of its forward, and a label for messages."""
    rng = random.Random(seed)
    sizes = {
        "num_modalities": rng.choice([2, 2, 3, 4]),
        "num_rows": rng.choice([0, 1, 2, 3, 5, 8, 13]),
        "width": rng.choice([1, 3, 6]),
        "classes": rng.choice([1, 2, 3, 7, 17]),
    }
    options = {
        "strategy": rng.choice(["greedy", "independent", "collaborative"]),
        "clean_path": rng.choice(["shared", "routed", "detached"]),
        "subsets": rng.choice(["single", "all"]),
        "divergence": rng.choice(DIVERGENCES),
        "exclude": rng.choice([None, "self", "same_label"]),
        "scheme": rng.choice(["cyclic", "uniform"]),
        "num_permutations": rng.choice([1, 2, 5, 32, "all"]),
        "shared_donor": rng.random() < 0.5,
    }
    if options["divergence"] in OF_SOFTMAX:  # of one logit it is refused
        sizes["classes"] = max(sizes["classes"], 2)
    if options["num_permutations"] == 32 and options["scheme"] == "uniform":
        options["num_permutations"] = 7
    n, m = sizes["num_rows"], sizes["num_modalities"]
    g = generator(seed)
    data = {
        "present": make_present(seed, n, m) if rng.random() < 0.4 else None,
        "sample_weight": (torch.rand(n, generator=g) * 2).round() if rng.random() < 0.4 else None,
    }
    scale = rng.choice([0.1, 1.0, 30.0])
    chunk_rows = rng.choice([None, 1, 4, 11])
    return sizes, options, data, scale, chunk_rows


def run(seed, way):
    sizes, options, data, scale, chunk_rows = draw(seed)
    g = generator(seed)
    m, n, d, c = sizes.values()
    latents = [
        (scale * torch.randn(n, d, generator=g, dtype=torch.float64)).requires_grad_()
        for _ in range(m)
    ]
    linear = nn.Linear(m * d, c, bias=seed % 3 > 0).double()
    with torch.no_grad():
        for p in linear.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64))
    labels = torch.randint(0, 3, (n,), generator=g)
    fusion = {
        "head": mcr_fast.AdditiveFusion.from_sequential(
            nn.Sequential(linear, nn.Identity()), [d] * m
        ),
        "callable": lambda z: linear(torch.cat(z, 1)),
    }.get(way, linear)
    loss = mcr_fast.MCRLoss(
        [d] * m,
        c,
        mipd_weight=1.0,
        contrastive_weight=0.0,
        chunk_rows=chunk_rows,
        backend="reference" if way == "reference" else None,
        **options,
    )
    out = loss(latents, labels, fusion=fusion, generator=generator(seed), **data)
    out.loss.backward()
    tensors = [*latents, *([] if linear.bias is None else [linear.bias])]
    tensors += [] if way == "callable" else [linear.weight]
    # where a factor is 0 throughout, one way has no gradient and another has zeros
    return out, [torch.zeros_like(x) if x.grad is None else x.grad for x in tensors]


@pytest.mark.parametrize("seed", sample(SEEDS, 4))
def test_kernel_reference_and_engine_agree(seed):
    _, options, _, _, _ = draw(seed)
    truth, wanted = run(seed, "reference")
    for way in ("kernel", "head", "callable"):
        out, grads = run(seed, way)
        for name in ("loss", "divergences", "logits"):
            torch.testing.assert_close(
                getattr(out, name),
                getattr(truth, name),
                rtol=1e-9,
                atol=1e-12,
                msg=lambda text, name=name, way=way: f"{way} {name}, {options}: {text}",
            )
        for t, (a, b) in enumerate(zip(grads, wanted, strict=False)):
            torch.testing.assert_close(
                a,
                b,
                rtol=1e-8,
                atol=1e-11,
                msg=lambda text, t=t, way=way: f"{way} gradient {t}, {options}: {text}",
            )
