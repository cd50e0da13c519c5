"""Bad input: section 4 of the specification, by the message of each error."""

import re

import pytest
import torch
from torch import nn

import mcr_fast
from mcr_fast import AdditiveFusion, MCRLoss
from mcr_fast import functional as F
from mcr_fast.sampling import CyclicPermutations

M, N, C, K, D = 2, 4, 3, 2, 5


class DTensor(torch.Tensor):
    """Known by its name: the package does not import torch.distributed."""


x = torch.ones


A = x(M, N, C)
ROWS = torch.arange(N)
SHIFTS = torch.tensor([1, 2])
LABELS = torch.tensor([0, 1, 2, 0])
TABLE = torch.stack([ROWS.roll(1), ROWS.roll(2)])
REPEATED = torch.tensor([[0, 1, 2, 3], [0, 1, 1, 3]])
OUTSIDE = torch.tensor([[0, 1, 2, 4], [0, 1, 2, 3]])
LATENTS = [x(N, D), x(N, D)]
CLEAN = x(N, C)
LINEAR = nn.Linear(2 * D, C)
UNEVEN = [x(N, D), x(N, D + 1)]
OF_LABELS = {"ceb_weight": 1.0, "ceb_source": "labels"}


def later(function):
    """The function, to be called by the test."""
    return lambda *args, **options: lambda: function(*args, **options)


pd, rd, linear = map(later, (F.permuted_divergence, F.row_divergence, F.linear_permuted_divergence))
nt_xent, sup_con, reconstruction = map(later, (F.nt_xent, F.sup_con, F.reconstruction_loss))
sample, additive = later(mcr_fast.sample_permutations), later(AdditiveFusion)
from_linear = later(AdditiveFusion.from_linear)
from_sequential = later(AdditiveFusion.from_sequential)


def cyclic(order=ROWS, shifts=SHIFTS):
    return CyclicPermutations(order, shifts)


@later
def mcr(options=None, latents=LATENTS, labels=LABELS, fusion=LINEAR, dims=(D, D), **rest):
    return MCRLoss(dims, C, **(options or {}))(latents, labels, fusion=fusion, **rest)


@later
def loss(dims=(D, D), classes=C, **options):
    return MCRLoss(dims, classes, **options)


# A message and the call, or calls, that it is for.
VALUE_ERRORS = {
    "contributions must hold at least 2 modalities, got 1": (pd(x(1, N, C)), pd([x(N, C)])),
    "embeddings must hold at least 2": nt_xent([x(N, D)]),
    "latents must hold at least 2 modalities, got 1": (
        reconstruction([x(N, D)], x(N, D)),
        linear([x(N, D)], x(C, D)),
    ),
    "contributions[1] must have shape [N, C] of contributions[0] = [4, 3], got [4, 4]": pd(
        [x(N, C), x(N, C + 1)]
    ),
    "contributions[1] must have 4 rows like": pd([x(N, C), x(N + 1, C)]),
    "contributions[1] must be on cpu like contributions[0], got meta": pd(
        [x(N, C), x(N, C).to("meta")]
    ),
    "contributions must have shape [M, N, C], got [4, 3]": pd(x(N, C)),
    "contributions must have at least 1 class": pd(x(M, N, 0)),
    "bias must have shape [C] = [3], got [4]": pd(A, bias=x(C + 1)),
    "bias must be on cpu like contributions": pd(A, bias=x(C).to("meta")),
    "permutations must have shape [K, N] or [M, K, N] with M = 2 and N = 4, got [2, 3]": pd(
        A, TABLE[:, :3]
    ),
    "permutations must have shape [K, N] or [M, K, N]": pd(A, ROWS),
    "got [3, 2, 4]": pd(A, TABLE.expand(3, K, N)),
    "permutations must be on cpu": pd(A, TABLE.to("meta")),
    "permutations.order must have shape [N] = [4], got [3]": pd(A, cyclic(ROWS[:3])),
    "permutations.order must be a permutation of 0..3, but permutations.order is [0, 1, 1, 3]": pd(
        A, cyclic(torch.tensor([0, 1, 1, 3]))
    ),
    "permutations.shifts must have shape": pd(A, cyclic(shifts=torch.ones(3, 1).long())),
    "permutations.shifts must be in 1..N-1 = 1..3": pd(A, cyclic(shifts=torch.tensor([1, 4]))),
    "permutations.shifts must be in 1..N-1": pd(A, cyclic(shifts=torch.tensor([0, 1]))),
    "every row of permutations must be a permutation of 0..3, but "
    "permutations[1] is [0, 1, 1, 3]": pd(A, REPEATED),
    "but permutations[0] is [0, 1, 2, 4]": pd(A, OUTSIDE),
    "permutations[1, 1] is [0, 1, 1, 3]": pd(A, torch.stack([TABLE, REPEATED])),
    "strategy must be one of 'greedy', 'independent', 'collaborative', got 'gready'": (
        pd(A, strategy="gready"),
        linear(LATENTS, x(C, 2 * D), strategy="gready"),
    ),
    "clean_path must be one of 'shared', 'routed', 'detached'": pd(A, clean_path="x"),
    "subsets must be one of 'single', 'all'": pd(A, subsets="x"),
    "divergence must be one of 'jsd', 'mse', 'binary_jsd'": pd(A, divergence="kl"),
    "exclude must be one of None, 'self', 'same_label'": pd(A, exclude="x"),
    "backend must be one of None, 'reference', 'cpu', 'triton', 'cuda', got 'gpu'": pd(
        A, backend="gpu"
    ),
    "backend must be one of": nt_xent(LATENTS, backend="x"),
    "scheme must be one of ('uniform', 'cyclic'), got 'x'": sample(1, 4, scheme="x"),
    "temperature must be finite and above 0, got 0": nt_xent(LATENTS, temperature=0),
    "temperature must be finite and above 0": (
        sup_con(LATENTS, temperature=-1.0),
        later(mcr_fast.NTXentLoss)(float("nan")),
        loss(temperature=0.0),
    ),
    "labels must have shape [N] = [4], got [3]": (
        pd(A, labels=LABELS[:3]),
        nt_xent(LATENTS, LABELS[:3]),
        sup_con(x(N, D), LABELS[:3]),
        mcr(labels=LABELS[:3]),
    ),
    "labels must be given for one tensor of embeddings, got None": nt_xent(x(N, D)),
    "labels must be on cpu": pd(A, labels=LABELS.to("meta")),
    "labels must be given for exclude='same_label', got None": (
        pd(A, exclude="same_label"),
        mcr({"exclude": "same_label"}, labels=None),
    ),
    "num_permutations must be at most batch_size - 1 = 3 for scheme='cyclic', got 4": sample(4, 4),
    "num_modalities must be at most batch_size - 1 = 2 for own donors": sample(
        1, 3, num_modalities=3
    ),
    "device must name one that torch knows, got 'gpu'": sample(1, 3, device="gpu"),
    "num_permutations must be at least 1, got 0": (sample(0, 3), loss(num_permutations=0)),
    "batch_size must be at least 0, got -1": sample(1, -1),
    "reconstruction must have shape [N, sum of D_m] = [4, 10], got [4, 5]": reconstruction(
        LATENTS, x(N, D)
    ),
    "embeddings[1] must have shape [N, D] of embeddings[0] = [4, 5], got [4, 6]": nt_xent(UNEVEN),
    "present must have shape [N, M] = [4, 2], got [2, 4]": pd(A, present=x(M, N).bool()),
    "present must have shape [L] = [4], got [4, 2]": nt_xent(
        x(N, D), LABELS, present=x(N, M).bool()
    ),
    "sample_weight must have shape [N] = [4], got [2]": pd(A, sample_weight=x(M)),
    "sample_weight must not be negative, got -1.0": pd(A, sample_weight=-x(N)),
    "sample_weight must not require gradients": pd(A, sample_weight=x(N).requires_grad_()),
    "row_weight must have shape [R] = [4], got [2]": rd(CLEAN, CLEAN, ROWS, row_weight=x(M)),
    "rows must have shape [R] = [4], got [2]": rd(CLEAN, CLEAN, ROWS[:2]),
    "rows must be in 0..N-1 = 0..3, got 1..4": rd(CLEAN, CLEAN, ROWS + 1),
    "perturbed must have C = 4 columns like clean, got 3": rd(x(N, C), x(N, C + 1), ROWS),
    "latent_dims must hold at least 2 modalities": loss([D]),
    "projections must be at least 2, one a modality, got 1": additive([nn.Linear(D, C)]),
    "perturbation must be one of 'permute', 'zero', 'noise'": loss(perturbation="x"),
    "contrastive must be one of 'nt_xent', 'sup_con'": loss(contrastive="x"),
    "ceb_source must be one of 'logits', 'labels'": loss(ceb_source="x"),
    "scheme must be one of 'uniform', 'cyclic'": loss(scheme="x"),
    "chunk_rows must be at least 1, got 0": loss(chunk_rows=0),
    "mipd_weight must be finite, got nan": loss(mipd_weight=float("nan")),
    "num_classes must be at least 1, got 0": loss(classes=0),
    "labels must have 4 rows, got shape [3]": mcr({"contrastive_weight": 0.0}, labels=LABELS[:3]),
    "labels must be given for ceb_source='labels', got None": mcr(OF_LABELS, labels=None),
    "labels must be in 0..2, got 1..3": mcr(OF_LABELS, labels=LABELS + 1),
    "latents[1] must end in 6 as latent_dims [5, 6] says, got [4, 5]": mcr(dims=(D, D + 1)),
    "latents must hold 2 modalities as latent_dims [5, 5] says, got 3": mcr(
        latents=[*LATENTS, x(N, D)]
    ),
    "latents[1] must have 4 rows like latents[0], got 5": mcr(latents=[x(N, D), x(N + 1, D)]),
    "latents[0] must have shape [N, ..., D], got [5]": mcr(latents=[x(D), x(D)]),
    "latent_dims must add up to the linear layer's in_features = 5, got [5, 5] with sum 10": mcr(
        fusion=nn.Linear(D, C)
    ),
    "fusion must return logits [rows, C] = [4, 3], got [4, 4]": mcr(fusion=nn.Linear(2 * D, C + 1)),
    "latent_dims must add up to the linear layer's in_features = 10, got "
    "[5, 6] with sum 11": from_linear(LINEAR, [D, D + 1]),
    "latents[1] must have shape [N, 5] for a linear fusion": lambda: AdditiveFusion.from_linear(
        LINEAR, [D, D]
    )(UNEVEN),
    "embeddings must be given for "
    "the contrastive term when modalities differ in width, got latent_dims [5, 6]": mcr(
        dims=(D, D + 1), latents=UNEVEN, fusion=nn.Linear(2 * D + 1, C)
    ),
    "logits must have shape [N, C] = [4, 3], got [4, 4]": mcr(logits=x(N, C + 1)),
    "fusion must return logits [rows, C] = [4, 3], got [4, 5]": mcr(fusion=lambda z: z[0]),
    "permutations must be None for perturbation='zero', got Tensor": mcr(
        {"perturbation": "zero"}, permutations=TABLE
    ),
    "bias must have shape [H], got [1, 3]": additive([LINEAR, LINEAR], x(1, 3)),
    "weight must have shape [C, 10]": linear(LATENTS, x(C, 9)),
}
TYPE_ERRORS = {
    "contributions[1] must be torch.float32 like contributions[0], got torch.float64": pd(
        [x(N, C), x(N, C).double()]
    ),
    "contributions[1] must be a tensor, got float": pd([x(N, C), 3.0]),
    "contributions must be a list of tensors": pd(3),
    "bias must have one of the dtypes": pd(A, bias=x(C).long()),
    "permutations must be torch.int64, got torch.int32": pd(A, TABLE.int()),
    "permutations must be an int64 tensor": pd(A, [[0, 1]]),
    "permutations.order must be torch.int64": pd(A, cyclic(ROWS.int())),
    "temperature must be a number, got Tensor": later(mcr_fast.SupConLoss)(x(1)),
    "labels must be integers or floats": nt_xent(LATENTS, LABELS.to(torch.complex64)),
    "num_permutations must be an int, got float": sample(1.5, 3),
    "generator must be a torch.Generator, got int": sample(1, 3, generator=0),
    "contributions must have one of the dtypes torch.float32": pd(A.long()),
    "perturbed must have one of the dtypes": rd(x(N, C).int(), x(N, C), ROWS),
    "clean must have one of the dtypes": rd(x(N, C), x(N, C).int(), ROWS),
    "embeddings[0] must have one of the dtypes": nt_xent([x(N, D).long()] * 2),
    "contributions must have one of the dtypes": pd(A.bool()),
    "contributions must be a plain tensor, got a DTensor": pd(A.as_subclass(DTensor)),
    "labels must be a plain tensor, got a DTensor": nt_xent(LATENTS, LABELS.as_subclass(DTensor)),
    "present must be torch.bool, got torch.float32": pd(A, present=x(N, M)),
    "sample_weight must have one of the dtypes": pd(A, sample_weight=x(N).int()),
    "rows must be torch.int64, got torch.int32": rd(CLEAN, CLEAN, ROWS.int()),
    "num_permutations must be int, got str": loss(num_permutations="x"),
    "labels must be class numbers": mcr(OF_LABELS, labels=LABELS.float()),
    "must be an nn.Linear, got ReLU": (
        from_linear(nn.ReLU(), [D, D]),
        from_sequential(nn.Sequential(nn.ReLU()), [D, D]),
    ),
    "seq must be an nn.Sequential": from_sequential(LINEAR, [D, D]),
    "latent_dims must be int, got str": loss([D, "5"]),
    "logits must have one of the dtypes": mcr(logits=x(N, C).long()),
    "latents[0] must be a plain tensor, got a DTensor": mcr(
        latents=[z.as_subclass(DTensor) for z in LATENTS]
    ),
    "fusion must be callable, got int": mcr(fusion=3),
    "fusion must return a tensor of logits, got NoneType": mcr(fusion=lambda z: None),
    "head must be a module": additive([LINEAR, LINEAR], head=len),
    "latents[1] must be torch.float32 like weight": linear(
        [LATENTS[0], LATENTS[1].double()], x(C, 2 * D)
    ),
}
RUNTIME_ERRORS = {
    "use backend=None": pd(A, backend="cuda"),
}
ERRORS = {ValueError: VALUE_ERRORS, TypeError: TYPE_ERRORS, RuntimeError: RUNTIME_ERRORS}
CASES = [
    pytest.param(error, message, call, id=message)
    for error, rows in ERRORS.items()
    for message, calls in rows.items()
    for call in (calls if isinstance(calls, tuple) else (calls,))
]


@pytest.mark.parametrize(("error", "message", "call"), CASES)
def test_bad_input(error, message, call):
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


@pytest.mark.parametrize("backend", ["reference", None])
def test_no_permutation_at_all_is_no_pair(backend):
    for none in (TABLE[:0], cyclic(shifts=SHIFTS[:0]), TABLE[:0].expand(M, 0, N)):
        contributions = A.clone().requires_grad_()
        value = F.permuted_divergence(contributions, none, backend=backend)
        value.sum().backward()
        assert (value == 0).all()
        assert (contributions.grad == 0).all()
