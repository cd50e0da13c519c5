"""Bad input to functions: section 4 of the specification, by the message of each error."""

import re

import pytest
import torch

import mcr_fast
from mcr_fast import functional as F
from mcr_fast.sampling import CyclicPermutations

M, N, C, K, D = 2, 4, 3, 2, 5


class DTensor(torch.Tensor):
    """Known by its name: the package does not import torch.distributed."""


def x(*shape, dtype=torch.float32):
    return torch.ones(*shape, dtype=dtype)


A = x(M, N, C)
ROWS = torch.arange(N)
SHIFTS = torch.tensor([1, 2])
LABELS = torch.tensor([0, 1, 2, 0])
TABLE = torch.stack([ROWS.roll(1), ROWS.roll(2)])
REPEATED = torch.tensor([[0, 1, 2, 3], [0, 1, 1, 3]])
OUTSIDE = torch.tensor([[0, 1, 2, 4], [0, 1, 2, 3]])
LATENTS = [x(N, D), x(N, D)]


def pd(*args, **kwargs):
    return lambda: F.permuted_divergence(*args, **kwargs)


def rd(*args, **kwargs):
    return lambda: F.row_divergence(*args, **kwargs)


def cyclic(order=ROWS, shifts=SHIFTS):
    return CyclicPermutations(order, shifts)


BAD = {
    # fewer than 2 modalities
    "one_modality": (
        pd(x(1, N, C)),
        ValueError,
        "contributions must hold at least 2 modalities, got 1",
    ),
    "one_in_list": (
        pd([x(N, C)]),
        ValueError,
        "contributions must hold at least 2 modalities, got 1",
    ),
    "one_embedding": (lambda: F.nt_xent([x(N, D)]), ValueError, "embeddings must hold at least 2"),
    "one_latent": (
        lambda: F.reconstruction_loss([x(N, D)], x(N, D)),
        ValueError,
        "latents must hold at least 2 modalities, got 1",
    ),
    # contributions of different shape, dtype or device
    "shape": (
        pd([x(N, C), x(N, C + 1)]),
        ValueError,
        "contributions[1] must have shape [N, C] of contributions[0] = [4, 3], got [4, 4]",
    ),
    "rows": (pd([x(N, C), x(N + 1, C)]), ValueError, "contributions[1] must have 4 rows like"),
    "dtype": (
        pd([x(N, C), x(N, C, dtype=torch.float64)]),
        TypeError,
        "contributions[1] must be torch.float32 like contributions[0], got torch.float64",
    ),
    "device": (
        pd([x(N, C), x(N, C).to("meta")]),
        ValueError,
        "contributions[1] must be on cpu like contributions[0], got meta",
    ),
    "ndim": (pd(x(N, C)), ValueError, "contributions must have shape [M, N, C], got [4, 3]"),
    "no_class": (pd(x(M, N, 0)), ValueError, "contributions must have at least 1 class"),
    "not_a_tensor": (pd([x(N, C), 3.0]), TypeError, "contributions[1] must be a tensor, got float"),
    "not_a_list": (pd(3), TypeError, "contributions must be a list of tensors"),
    "bias_shape": (pd(A, bias=x(C + 1)), ValueError, "bias must have shape [C] = [3], got [4]"),
    "bias_dtype": (pd(A, bias=x(C).long()), TypeError, "bias must have one of the dtypes"),
    "bias_device": (
        pd(A, bias=x(C).to("meta")),
        ValueError,
        "bias must be on cpu like contributions",
    ),
    # wrong permutation shape, dtype, device
    "permutation_shape": (
        pd(A, TABLE[:, :3]),
        ValueError,
        "permutations must have shape [K, N] or [M, K, N] with M = 2 and N = 4, got [2, 3]",
    ),
    "permutation_ndim": (
        pd(A, ROWS),
        ValueError,
        "permutations must have shape [K, N] or [M, K, N]",
    ),
    "permutation_modalities": (pd(A, TABLE.expand(3, K, N)), ValueError, "got [3, 2, 4]"),
    "permutation_dtype": (
        pd(A, TABLE.int()),
        TypeError,
        "permutations must be torch.int64, got torch.int32",
    ),
    "permutation_device": (pd(A, TABLE.to("meta")), ValueError, "permutations must be on cpu"),
    "permutation_type": (pd(A, [[0, 1]]), TypeError, "permutations must be an int64 tensor"),
    "order_shape": (
        pd(A, cyclic(ROWS[:3])),
        ValueError,
        "permutations.order must have shape [N] = [4], got [3]",
    ),
    "order_dtype": (pd(A, cyclic(ROWS.int())), TypeError, "permutations.order must be torch.int64"),
    "order_value": (
        pd(A, cyclic(torch.tensor([0, 1, 1, 3]))),
        ValueError,
        "permutations.order must be a permutation of 0..3, but permutations.order is [0, 1, 1, 3]",
    ),
    "shift_shape": (
        pd(A, cyclic(shifts=torch.ones(3, 1).long())),
        ValueError,
        "permutations.shifts must have shape",
    ),
    "shift_value": (
        pd(A, cyclic(shifts=torch.tensor([1, 4]))),
        ValueError,
        "permutations.shifts must be in 1..N-1 = 1..3",
    ),
    "shift_zero": (
        pd(A, cyclic(shifts=torch.tensor([0, 1]))),
        ValueError,
        "permutations.shifts must be in 1..N-1",
    ),
    # a row that is not a permutation
    "repeated": (
        pd(A, REPEATED),
        ValueError,
        "every row of permutations must be a permutation of 0..3, but permutations[1] is [0, 1, "
        "1, 3]",
    ),
    "outside": (pd(A, OUTSIDE), ValueError, "but permutations[0] is [0, 1, 2, 4]"),
    "own_repeated": (
        pd(A, torch.stack([TABLE, REPEATED])),
        ValueError,
        "permutations[1, 1] is [0, 1, 1, 3]",
    ),
    # unknown options, with the known ones
    "strategy": (
        pd(A, strategy="gready"),
        ValueError,
        "strategy must be one of 'greedy', 'independent', 'collaborative', got 'gready'",
    ),
    "clean_path": (
        pd(A, clean_path="x"),
        ValueError,
        "clean_path must be one of 'shared', 'routed', 'detached'",
    ),
    "subsets": (pd(A, subsets="x"), ValueError, "subsets must be one of 'single', 'all'"),
    "divergence": (
        pd(A, divergence="kl"),
        ValueError,
        "divergence must be one of 'jsd', 'mse', 'binary_jsd'",
    ),
    "exclude": (
        pd(A, exclude="x"),
        ValueError,
        "exclude must be one of None, 'self', 'same_label'",
    ),
    "backend": (
        pd(A, backend="gpu"),
        ValueError,
        "backend must be one of None, 'reference', 'cpu', 'triton', 'cuda', got 'gpu'",
    ),
    "backend_contrastive": (
        lambda: F.nt_xent(LATENTS, backend="x"),
        ValueError,
        "backend must be one of",
    ),
    "backend_missing": (pd(A, backend="cuda"), RuntimeError, "use backend=None"),
    "scheme": (
        lambda: mcr_fast.sample_permutations(1, 4, scheme="x"),
        ValueError,
        "scheme must be one of ('uniform', 'cyclic'), got 'x'",
    ),
    # temperature
    "temperature": (
        lambda: F.nt_xent(LATENTS, temperature=0),
        ValueError,
        "temperature must be finite and above 0, got 0",
    ),
    "temperature_negative": (
        lambda: F.sup_con(LATENTS, temperature=-1.0),
        ValueError,
        "temperature must be finite and above 0",
    ),
    "temperature_nan": (
        lambda: mcr_fast.NTXentLoss(float("nan")),
        ValueError,
        "temperature must be finite and above 0",
    ),
    "temperature_type": (
        lambda: mcr_fast.SupConLoss(x(1)),
        TypeError,
        "temperature must be a number, got Tensor",
    ),
    # labels
    "labels_length": (
        pd(A, labels=LABELS[:3]),
        ValueError,
        "labels must have shape [N] = [4], got [3]",
    ),
    "labels_contrastive": (
        lambda: F.nt_xent(LATENTS, LABELS[:3]),
        ValueError,
        "labels must have shape [N] = [4], got [3]",
    ),
    "labels_rows": (
        lambda: F.sup_con(x(N, D), LABELS[:3]),
        ValueError,
        "labels must have shape [N] = [4], got [3]",
    ),
    "labels_one_tensor": (
        lambda: F.nt_xent(x(N, D)),
        ValueError,
        "labels must be given for one tensor of embeddings, got None",
    ),
    "labels_complex": (
        lambda: F.nt_xent(LATENTS, LABELS.to(torch.complex64)),
        TypeError,
        "labels must be integers or floats",
    ),
    "labels_device": (pd(A, labels=LABELS.to("meta")), ValueError, "labels must be on cpu"),
    "labels_missing": (
        pd(A, exclude="same_label"),
        ValueError,
        "labels must be given for exclude='same_label', got None",
    ),
    # too many permutations
    "too_many": (
        lambda: mcr_fast.sample_permutations(4, 4),
        ValueError,
        "num_permutations must be at most batch_size - 1 = 3 for scheme='cyclic', got 4",
    ),
    "too_many_modalities": (
        lambda: mcr_fast.sample_permutations(1, 3, num_modalities=3),
        ValueError,
        "num_modalities must be at most batch_size - 1 = 2 for own donors",
    ),
    "count_type": (
        lambda: mcr_fast.sample_permutations(1.5, 3),
        TypeError,
        "num_permutations must be an int, got float",
    ),
    "generator": (
        lambda: mcr_fast.sample_permutations(1, 3, generator=0),
        TypeError,
        "generator must be a torch.Generator, got int",
    ),
    "device_name": (
        lambda: mcr_fast.sample_permutations(1, 3, device="gpu"),
        ValueError,
        "device must name one that torch knows, got 'gpu'",
    ),
    "count_low": (
        lambda: mcr_fast.sample_permutations(0, 3),
        ValueError,
        "num_permutations must be at least 1, got 0",
    ),
    "batch_low": (
        lambda: mcr_fast.sample_permutations(1, -1),
        ValueError,
        "batch_size must be at least 0, got -1",
    ),
    # latent_dims that do not match
    "reconstruction_width": (
        lambda: F.reconstruction_loss(LATENTS, x(N, D)),
        ValueError,
        "reconstruction must have shape [N, sum of D_m] = [4, 10], got [4, 5]",
    ),
    # modalities of different width for the contrastive term
    "widths_nt_xent": (
        lambda: F.nt_xent([x(N, D), x(N, D + 1)]),
        ValueError,
        "embeddings[1] must have shape [N, D] of embeddings[0] = [4, 5], got [4, 6]",
    ),
    # integer logits
    "int_contributions": (
        pd(A.long()),
        TypeError,
        "contributions must have one of the dtypes torch.float32",
    ),
    "int_perturbed": (
        rd(x(N, C).int(), x(N, C), ROWS),
        TypeError,
        "perturbed must have one of the dtypes",
    ),
    "int_clean": (rd(x(N, C), x(N, C).int(), ROWS), TypeError, "clean must have one of the dtypes"),
    "int_embeddings": (
        lambda: F.nt_xent([x(N, D).long()] * 2),
        TypeError,
        "embeddings[0] must have one of the dtypes",
    ),
    "bool_contributions": (pd(A.bool()), TypeError, "contributions must have one of the dtypes"),
    # DTensor
    "dtensor": (
        pd(A.as_subclass(DTensor)),
        TypeError,
        "contributions must be a plain tensor, got a DTensor",
    ),
    "dtensor_labels": (
        lambda: F.nt_xent(LATENTS, LABELS.as_subclass(DTensor)),
        TypeError,
        "labels must be a plain tensor, got a DTensor",
    ),
    # masks, weights and rows
    "present_dtype": (
        pd(A, present=x(N, M)),
        TypeError,
        "present must be torch.bool, got torch.float32",
    ),
    "present_shape": (
        pd(A, present=x(M, N).bool()),
        ValueError,
        "present must have shape [N, M] = [4, 2], got [2, 4]",
    ),
    "present_rows": (
        lambda: F.nt_xent(x(N, D), LABELS, present=x(N, M).bool()),
        ValueError,
        "present must have shape [L] = [4], got [4, 2]",
    ),
    "weight_shape": (
        pd(A, sample_weight=x(M)),
        ValueError,
        "sample_weight must have shape [N] = [4], got [2]",
    ),
    "weight_negative": (
        pd(A, sample_weight=-x(N)),
        ValueError,
        "sample_weight must not be negative, got -1.0",
    ),
    "weight_grad": (
        pd(A, sample_weight=x(N).requires_grad_()),
        ValueError,
        "sample_weight must not require gradients",
    ),
    "weight_int": (
        pd(A, sample_weight=x(N).int()),
        TypeError,
        "sample_weight must have one of the dtypes",
    ),
    "row_weight": (
        rd(x(N, C), x(N, C), ROWS, row_weight=x(M)),
        ValueError,
        "row_weight must have shape [R] = [4], got [2]",
    ),
    "rows_dtype": (
        rd(x(N, C), x(N, C), ROWS.int()),
        TypeError,
        "rows must be torch.int64, got torch.int32",
    ),
    "rows_shape": (
        rd(x(N, C), x(N, C), ROWS[:2]),
        ValueError,
        "rows must have shape [R] = [4], got [2]",
    ),
    "rows_outside": (
        rd(x(N, C), x(N, C), ROWS + 1),
        ValueError,
        "rows must be in 0..N-1 = 0..3, got 1..4",
    ),
    "row_classes": (
        rd(x(N, C), x(N, C + 1), ROWS),
        ValueError,
        "perturbed must have C = 4 columns like clean, got 3",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    call, error, message = BAD[name]
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize("backend", ["reference", None])
def test_no_permutation_at_all_is_no_pair(backend):
    for none in (TABLE[:0], cyclic(shifts=SHIFTS[:0]), TABLE[:0].expand(M, 0, N)):
        contributions = A.clone().requires_grad_()
        value = F.permuted_divergence(contributions, none, backend=backend)
        value.sum().backward()
        assert (value == 0).all()
        assert (contributions.grad == 0).all()
