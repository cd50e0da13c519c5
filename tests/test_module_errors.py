"""Bad input to modules: section 4 of the specification, by the message of each error."""

import re

import pytest
import torch
from torch import nn

import mcr_fast
from mcr_fast import MCRLoss

M, N, C, D = 2, 4, 3, 5


class DTensor(torch.Tensor):
    """Known by its name: the package does not import torch.distributed."""


def x(*shape, dtype=torch.float32):
    return torch.ones(*shape, dtype=dtype)


ROWS = torch.arange(N)
LABELS = torch.tensor([0, 1, 2, 0])
TABLE = torch.stack([ROWS.roll(1), ROWS.roll(2)])
REPEATED = torch.tensor([[0, 1, 2, 3], [0, 1, 1, 3]])
LATENTS = [x(N, D), x(N, D)]
LINEAR = nn.Linear(2 * D, C)


def mcr(options=None, latents=LATENTS, labels=LABELS, fusion=LINEAR, dims=(D, D), **kwargs):
    return lambda: MCRLoss(dims, C, **(options or {}))(latents, labels, fusion=fusion, **kwargs)


BAD = {
    # fewer than 2 modalities
    "one_width": (
        lambda: MCRLoss([D], C),
        ValueError,
        "latent_dims must hold at least 2 modalities",
    ),
    "one_projection": (
        lambda: mcr_fast.AdditiveFusion([nn.Linear(D, C)]),
        ValueError,
        "projections must be at least 2, one a modality, got 1",
    ),
    # unknown options, with the known ones
    "perturbation": (
        lambda: MCRLoss([D, D], C, perturbation="x"),
        ValueError,
        "perturbation must be one of 'permute', 'zero', 'noise'",
    ),
    "contrastive": (
        lambda: MCRLoss([D, D], C, contrastive="x"),
        ValueError,
        "contrastive must be one of 'nt_xent', 'sup_con'",
    ),
    "ceb_source": (
        lambda: MCRLoss([D, D], C, ceb_source="x"),
        ValueError,
        "ceb_source must be one of 'logits', 'labels'",
    ),
    "mcr_scheme": (
        lambda: MCRLoss([D, D], C, scheme="x"),
        ValueError,
        "scheme must be one of 'uniform', 'cyclic'",
    ),
    "num_permutations": (
        lambda: MCRLoss([D, D], C, num_permutations=0),
        ValueError,
        "num_permutations must be at least 1, got 0",
    ),
    "num_permutations_type": (
        lambda: MCRLoss([D, D], C, num_permutations="x"),
        TypeError,
        "num_permutations must be int, got str",
    ),
    "chunk_rows": (
        lambda: MCRLoss([D, D], C, chunk_rows=0),
        ValueError,
        "chunk_rows must be at least 1, got 0",
    ),
    "weight": (
        lambda: MCRLoss([D, D], C, mipd_weight=float("nan")),
        ValueError,
        "mipd_weight must be finite, got nan",
    ),
    "classes": (lambda: MCRLoss([D, D], 0), ValueError, "num_classes must be at least 1, got 0"),
    # temperature
    "temperature_mcr": (
        lambda: MCRLoss([D, D], C, temperature=0.0),
        ValueError,
        "temperature must be finite and above 0",
    ),
    # labels
    "labels_mcr": (mcr(labels=LABELS[:3]), ValueError, "labels must have shape [N] = [4], got [3]"),
    "labels_unused": (
        mcr({"contrastive_weight": 0.0}, labels=LABELS[:3]),
        ValueError,
        "labels must have 4 rows, got shape [3]",
    ),
    "labels_missing_mcr": (
        mcr({"exclude": "same_label"}, labels=None),
        ValueError,
        "labels must be given for exclude='same_label', got None",
    ),
    "labels_missing_ceb": (
        mcr({"ceb_weight": 1.0, "ceb_source": "labels"}, labels=None),
        ValueError,
        "labels must be given for ceb_source='labels', got None",
    ),
    "labels_float_ceb": (
        mcr({"ceb_weight": 1.0, "ceb_source": "labels"}, labels=LABELS.float()),
        TypeError,
        "labels must be class numbers",
    ),
    "labels_outside_ceb": (
        mcr({"ceb_weight": 1.0, "ceb_source": "labels"}, labels=LABELS + 1),
        ValueError,
        "labels must be in 0..2, got 1..3",
    ),
    # latent_dims that do not match
    "latent_width": (
        mcr(dims=(D, D + 1)),
        ValueError,
        "latents[1] must end in 6 as latent_dims [5, 6] says, got [4, 5]",
    ),
    "latent_count": (
        mcr(latents=[*LATENTS, x(N, D)]),
        ValueError,
        "latents must hold 2 modalities as latent_dims [5, 5] says, got 3",
    ),
    "latent_rows": (
        mcr(latents=[x(N, D), x(N + 1, D)]),
        ValueError,
        "latents[1] must have 4 rows like latents[0], got 5",
    ),
    "latent_ndim": (
        mcr(latents=[x(D), x(D)]),
        ValueError,
        "latents[0] must have shape [N, ..., D], got [5]",
    ),
    "linear_width": (
        mcr(fusion=nn.Linear(D, C)),
        ValueError,
        "latent_dims must add up to the linear layer's in_features = 5, got [5, 5] with sum 10",
    ),
    "linear_classes": (
        mcr(fusion=nn.Linear(2 * D, C + 1)),
        ValueError,
        "fusion must return logits [rows, C] = [4, 3], got [4, 4]",
    ),
    "from_linear": (
        lambda: mcr_fast.AdditiveFusion.from_linear(LINEAR, [D, D + 1]),
        ValueError,
        "latent_dims must add up to the linear layer's in_features = 10, got [5, 6] with sum 11",
    ),
    "from_linear_type": (
        lambda: mcr_fast.AdditiveFusion.from_linear(nn.ReLU(), [D, D]),
        TypeError,
        "must be an nn.Linear, got ReLU",
    ),
    "from_sequential": (
        lambda: mcr_fast.AdditiveFusion.from_sequential(nn.Sequential(nn.ReLU()), [D, D]),
        TypeError,
        "must be an nn.Linear, got ReLU",
    ),
    "from_sequential_type": (
        lambda: mcr_fast.AdditiveFusion.from_sequential(LINEAR, [D, D]),
        TypeError,
        "seq must be an nn.Sequential",
    ),
    "latent_dims_type": (
        lambda: MCRLoss([D, "5"], C),
        TypeError,
        "latent_dims must be int, got str",
    ),
    "linear_fusion_widths": (
        lambda: mcr_fast.AdditiveFusion.from_linear(LINEAR, [D, D])([x(N, D), x(N, D + 1)]),
        ValueError,
        "latents[1] must have shape [N, 5] for a linear fusion",
    ),
    # modalities of different width for the contrastive term
    "widths_contrastive": (
        mcr(dims=(D, D + 1), latents=[x(N, D), x(N, D + 1)], fusion=nn.Linear(2 * D + 1, C)),
        ValueError,
        "embeddings must be given for the contrastive term when modalities differ in width, got "
        "latent_dims [5, 6]",
    ),
    # integer logits
    "int_logits": (mcr(logits=x(N, C).long()), TypeError, "logits must have one of the dtypes"),
    # DTensor
    "dtensor_latents": (
        mcr(latents=[z.as_subclass(DTensor) for z in LATENTS]),
        TypeError,
        "latents[0] must be a plain tensor, got a DTensor",
    ),
    # masks, weights and rows
    "logits_shape": (
        mcr(logits=x(N, C + 1)),
        ValueError,
        "logits must have shape [N, C] = [4, 3], got [4, 4]",
    ),
    # fusions
    "fusion_type": (mcr(fusion=3), TypeError, "fusion must be callable, got int"),
    "fusion_shape": (
        mcr(fusion=lambda z: z[0]),
        ValueError,
        "fusion must return logits [rows, C] = [4, 3], got [4, 5]",
    ),
    "fusion_return": (
        mcr(fusion=lambda z: None),
        TypeError,
        "fusion must return a tensor of logits, got NoneType",
    ),
    "permutations_for_zero": (
        mcr({"perturbation": "zero"}, permutations=TABLE),
        ValueError,
        "permutations must be None for perturbation='zero', got Tensor",
    ),
    "bias_ndim": (
        lambda: mcr_fast.AdditiveFusion([LINEAR, LINEAR], x(1, 3)),
        ValueError,
        "bias must have shape [H], got [1, 3]",
    ),
    "head_type": (
        lambda: mcr_fast.AdditiveFusion([LINEAR, LINEAR], head=len),
        TypeError,
        "head must be a module",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_errors_come_before_any_work():
    calls = []

    def fusion(latents):
        calls.append(1)
        return latents[0][:, :C]

    for bad in ({"present": x(1).bool()}, {"sample_weight": x(1)}, {"permutations": REPEATED}):
        with pytest.raises((ValueError, TypeError)):
            mcr(fusion=fusion, **bad)()
    with pytest.raises(ValueError, match="labels"):
        mcr(fusion=fusion, labels=LABELS[:1])()
    assert not calls
