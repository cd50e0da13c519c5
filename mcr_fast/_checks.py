"""Argument checks at the public edge: they raise before any work and name what was wanted.

Nothing here waits for a device. Checks that read a tensor's values run on CPU tensors; on others
only with MCR_FAST_CHECK=1.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mcr_fast import env
from mcr_fast.sampling import CyclicPermutations

Strategy = Literal["greedy", "independent", "collaborative"]
CleanPath = Literal["shared", "routed", "detached"]
Subsets = Literal["single", "all"]
Divergence = Literal["jsd", "mse", "binary_jsd"]
Exclude = Literal["self", "same_label"]
Backend = Literal["reference", "cpu", "triton", "cuda"]

STRATEGIES: tuple[str, ...] = get_args(Strategy)
CLEAN_PATHS: tuple[str, ...] = get_args(CleanPath)
SUBSETS: tuple[str, ...] = get_args(Subsets)
DIVERGENCES: tuple[str, ...] = get_args(Divergence)
EXCLUDES: tuple[str | None, ...] = (None, *get_args(Exclude))
BACKENDS: tuple[str | None, ...] = (None, *get_args(Backend))

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_TENSOR_TYPES = (Tensor, torch.nn.Parameter)


def choice(name: str, value: object, known: tuple[str | None, ...]) -> None:
    """An option with a known set of values."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, known))}, got {value!r}")


def positive(name: str, value: object) -> float:
    """A finite Python number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(f"{name} must be finite and above 0, got {value!r}")
    return float(value)


def may_read(x: Tensor) -> bool:
    """Whether a check may look at the values: free on the CPU, a synchronisation elsewhere."""
    if torch.compiler.is_compiling():
        return False
    return x.device.type == "cpu" or env.check_enabled()


def plain_tensor(name: str, x: Any) -> Tensor:
    """A tensor of this process."""
    if not isinstance(x, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(x).__name__}")
    if type(x).__name__ == "DTensor":
        raise TypeError(
            f"{name} must be a plain tensor, got a DTensor; pass x.to_local() or x.full_tensor()"
        )
    return x


def float_tensor(name: str, x: Any) -> Tensor:
    """A tensor of one of the float dtypes the losses take."""
    plain_tensor(name, x)
    if x.dtype not in FLOAT_DTYPES:
        known = ", ".join(str(dtype) for dtype in FLOAT_DTYPES)
        raise TypeError(f"{name} must have one of the dtypes {known}, got {x.dtype}")
    return x


def shaped(name: str, x: Tensor, shape: tuple[int, ...], letters: str) -> None:
    """A tensor of exactly this shape."""
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must have shape {letters} = {list(shape)}, got {list(x.shape)}")


def on_device(name: str, x: Tensor, device: torch.device, of: str) -> None:
    """A tensor beside the others."""
    if x.device != device:
        raise ValueError(f"{name} must be on {device} like {of}, got {x.device}")


def modalities(name: str, tensors: Any) -> list[Tensor]:
    """At least two float tensors of one batch: same first dimension, same device."""
    if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
        raise TypeError(
            f"{name} must be a list of tensors, one a modality, got {type(tensors).__name__}"
        )
    if len(tensors) < 2:
        raise ValueError(f"{name} must hold at least 2 modalities, got {len(tensors)}")
    first = tensors[0]
    if all(
        type(x) in _TENSOR_TYPES
        and x.dtype in FLOAT_DTYPES
        and x.ndim >= 2
        and x.shape[0] == first.shape[0]
        and x.device == first.device
        for x in tensors
    ):
        return list(tensors)
    for m, x in enumerate(tensors):
        float_tensor(f"{name}[{m}]", x)
        if x.ndim < 2:
            raise ValueError(f"{name}[{m}] must have shape [N, ..., D], got {list(x.shape)}")
        if x.shape[0] != tensors[0].shape[0]:
            raise ValueError(
                f"{name}[{m}] must have {tensors[0].shape[0]} rows like {name}[0], got {x.shape[0]}"
            )
        on_device(f"{name}[{m}]", x, tensors[0].device, f"{name}[0]")
    return list(tensors)


def same_form(name: str, tensors: Sequence[Tensor], letters: str) -> None:
    """2-D tensors that can be stacked: one shape and one dtype."""
    first = tensors[0]
    if all(x.ndim == 2 and x.shape == first.shape and x.dtype == first.dtype for x in tensors):
        return
    for m, x in enumerate(tensors):
        if x.ndim != 2:
            raise ValueError(f"{name}[{m}] must have shape {letters}, got {list(x.shape)}")
        shaped(f"{name}[{m}]", x, tuple(tensors[0].shape), f"{letters} of {name}[0]")
        if x.dtype != tensors[0].dtype:
            raise TypeError(f"{name}[{m}] must be {tensors[0].dtype} like {name}[0], got {x.dtype}")


def stacked_contributions(contributions: Any) -> Tensor:  # [M, N, C]
    """[M, N, C], or M tensors [N, C] that are then stacked."""
    if not isinstance(contributions, Tensor):
        same_form("contributions", modalities("contributions", contributions), "[N, C]")
        contributions = torch.stack(tuple(contributions))
    x = float_tensor("contributions", contributions)
    if x.ndim != 3:
        raise ValueError(f"contributions must have shape [M, N, C], got {list(x.shape)}")
    if x.shape[0] < 2:
        raise ValueError(f"contributions must hold at least 2 modalities, got {x.shape[0]}")
    if x.shape[2] < 1:
        raise ValueError(f"contributions must have at least 1 class, got shape {list(x.shape)}")
    return x


def linear_latents(latents: Any, weight: Any) -> list[Tensor]:  # M tensors [N, D_m]
    """Latents whose widths add up to a linear layer's, of its dtype and device."""
    parts = modalities("latents", latents)
    float_tensor("weight", weight)
    width = sum(z.shape[-1] for z in parts)
    if weight.ndim != 2 or weight.shape[1] != width or weight.shape[0] < 1:
        raise ValueError(
            f"weight must have shape [C, {width}] for latents of {width} elements together, "
            f"got {list(weight.shape)}"
        )
    on_device("weight", weight, parts[0].device, "latents[0]")
    for m, z in enumerate(parts):
        if z.ndim != 2:
            raise ValueError(f"latents[{m}] must have shape [N, D_m], got {list(z.shape)}")
        if z.dtype != weight.dtype and not torch.is_autocast_enabled(z.device.type):
            raise TypeError(f"latents[{m}] must be {weight.dtype} like weight, got {z.dtype}")
    return parts


def subset_masks(subsets: str, num_modalities: int) -> tuple[int, ...]:
    """One bitmask a subset: by size, then lexicographic."""
    choice("subsets", subsets, SUBSETS)
    largest = 1 if subsets == "single" else num_modalities - 1
    return tuple(
        sum(1 << m for m in subset)
        for size in range(1, largest + 1)
        for subset in itertools.combinations(range(num_modalities), size)
    )


def donors(
    permutations: Any, num_modalities: int, num_rows: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """The (order, donors) that the ops take, of permutations in any of their public forms."""
    if permutations is None:
        return None, None
    if isinstance(permutations, CyclicPermutations):
        return _cyclic_donors(permutations, num_modalities, num_rows, device)
    if not isinstance(permutations, Tensor):
        raise TypeError(
            "permutations must be an int64 tensor, a cyclic sample of sample_permutations or None, "
            f"got {type(permutations).__name__}"
        )
    table = plain_tensor("permutations", permutations)
    if table.dtype != torch.int64:
        raise TypeError(f"permutations must be torch.int64, got {table.dtype}")
    own = table.ndim == 3
    if (
        table.ndim not in (2, 3)
        or table.shape[-1] != num_rows
        or own
        and len(table) != num_modalities
    ):
        raise ValueError(
            f"permutations must have shape [K, N] or [M, K, N] with M = {num_modalities} and "
            f"N = {num_rows}, got {list(table.shape)}"
        )
    on_device("permutations", table, device, "the batch")
    if may_read(table):
        _check_permutations("permutations", table)
    return None, table if own else table[None]


def _cyclic_donors(
    sample: CyclicPermutations, num_modalities: int, num_rows: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    order, shifts = sample.order, sample.shifts
    shaped("permutations.order", order, (num_rows,), "[N]")
    if shifts.ndim not in (1, 2) or shifts.ndim == 2 and len(shifts) != num_modalities:
        raise ValueError(
            f"permutations.shifts must have shape [K] or [M, K] with M = {num_modalities}, "
            f"got {list(shifts.shape)}"
        )
    for name, x in (("permutations.order", order), ("permutations.shifts", shifts)):
        if x.dtype != torch.int64:
            raise TypeError(f"{name} must be torch.int64, got {x.dtype}")
        on_device(name, x, device, "the batch")
    if num_rows <= 1:
        # no pair either way, and the ops need no case for it
        return None, None
    if may_read(order):
        _check_permutations("permutations.order", order)
        if ((shifts < 1) | (shifts >= num_rows)).any():
            raise ValueError(f"permutations.shifts must be in 1..N-1 = 1..{num_rows - 1}")
    return order, shifts if shifts.ndim == 2 else shifts[None]


def _check_permutations(name: str, table: Tensor) -> None:
    """Every row of [..., N] holds each of 0..N-1 once."""
    n = table.shape[-1]
    if table.numel() == 0:
        return
    rows = table.reshape(-1, n)
    first = _first_non_permutation(rows)
    if first >= 0:
        where = (
            [] if table.ndim == 1 else [first] if table.ndim == 2 else divmod(first, table.shape[1])
        )
        place = f"[{', '.join(map(str, where))}]" if where else ""
        raise ValueError(
            f"every row of {name} must be a permutation of 0..{n - 1}, but {name}{place} is "
            f"{rows[first][:16].tolist()}{'...' if n > 16 else ''}"
        )


def _first_non_permutation(rows: Tensor) -> int:  # [R, N]
    """The first row that does not hold each of 0..N-1 once, or -1."""
    if rows.device.type == "cpu" and env.cpu_library_loaded():
        return int(torch.ops.mcr_fast.first_non_permutation(rows))
    n = rows.shape[-1]
    inside = ((rows >= 0) & (rows < n)).all(-1)
    seen = torch.zeros_like(rows, dtype=torch.bool).scatter_(1, rows.clamp(0, n - 1), True)
    good = inside & seen.all(-1)
    return -1 if good.all() else int((~good).nonzero()[0, 0])


def divergence_options(
    strategy: object, clean_path: object, divergence: object, exclude: object, backend: object
) -> None:
    """The options of the regularizer."""
    choice("strategy", strategy, STRATEGIES)
    choice("clean_path", clean_path, CLEAN_PATHS)
    choice("divergence", divergence, DIVERGENCES)
    choice("exclude", exclude, EXCLUDES)
    choice("backend", backend, BACKENDS)


def exclusion_codes(
    exclude: str | None, labels: Any, num_rows: int, device: torch.device
) -> Tensor | None:  # [N] int64
    """Label codes if `exclude` compares labels; unneeded labels are checked all the same."""
    if exclude == "same_label":
        if labels is None:
            raise ValueError("labels must be given for exclude='same_label', got None")
        return label_codes(labels, num_rows, device)
    if labels is not None:
        check_labels(labels, num_rows, device)
    return None


def label_codes(
    labels: Any,  # [N], int or float
    num_rows: int,
    device: torch.device,
    *,
    repeat: int = 1,
) -> Tensor:  # [repeat * N] int64
    """Codes that are equal exactly where the labels are: -0.0 is 0.0, NaN equals nothing."""
    check_labels(labels, num_rows, device)
    # repeat() takes five times as long
    labels = labels.expand(repeat, num_rows).reshape(-1) if repeat > 1 else labels
    if not labels.dtype.is_floating_point:
        return labels.to(torch.int64)
    values = labels.detach().to(torch.float64) + 0.0
    rows = torch.arange(len(values), device=device)
    # the bit patterns from here on are NaNs: no number has them, and every row gets its own
    return torch.where(values.isnan(), 0x7FF8_0000_0000_0001 + rows, values.view(torch.int64))


def check_labels(labels: Any, num_rows: int, device: torch.device) -> None:
    """One real label a row."""
    plain_tensor("labels", labels)
    if labels.dtype.is_complex:
        raise TypeError(f"labels must be integers or floats, got {labels.dtype}")
    shaped("labels", labels, (num_rows,), "[N]")
    on_device("labels", labels, device, "the batch")


def check_present(present: Any, shape: tuple[int, ...], letters: str, device: torch.device) -> None:
    """Which rows of which modality exist; None: all."""
    if present is None:
        return
    plain_tensor("present", present)
    if present.dtype != torch.bool:
        raise TypeError(f"present must be torch.bool, got {present.dtype}")
    shaped("present", present, shape, letters)
    on_device("present", present, device, "the batch")


def check_weight(name: str, weight: Any, num_rows: int, letters: str, device: torch.device) -> None:
    """Weights >= 0, one a row; None: all 1."""
    if weight is None:
        return
    float_tensor(name, weight)
    shaped(name, weight, (num_rows,), letters)
    on_device(name, weight, device, "the batch")
    if weight.requires_grad:
        raise ValueError(
            f"{name} must not require gradients, the losses have none for it; detach it"
        )
    if may_read(weight) and (weight < 0).any():
        raise ValueError(f"{name} must not be negative, got {float(weight.min())}")


def row_logits(perturbed: Any, clean: Any) -> None:
    """[R, C] and [N, C] logits of one device."""
    for name, x in (("perturbed", perturbed), ("clean", clean)):
        float_tensor(name, x)
        if x.ndim != 2:
            raise ValueError(f"{name} must have shape [rows, C], got {list(x.shape)}")
    if perturbed.shape[1] != clean.shape[1]:
        raise ValueError(
            f"perturbed must have C = {clean.shape[1]} columns like clean, got {perturbed.shape[1]}"
        )
    if clean.shape[1] < 1:
        raise ValueError(f"clean must have at least 1 class, got shape {list(clean.shape)}")
    on_device("perturbed", perturbed, clean.device, "clean")


def row_index(rows: Any, length: int, num_rows: int, device: torch.device) -> None:
    """One clean row in 0..N-1 for every perturbed row."""
    plain_tensor("rows", rows)
    if rows.dtype != torch.int64:
        raise TypeError(f"rows must be torch.int64, got {rows.dtype}")
    shaped("rows", rows, (length,), "[R]")
    on_device("rows", rows, device, "clean")
    if may_read(rows) and ((rows < 0) | (rows >= num_rows)).any():
        raise ValueError(
            f"rows must be in 0..N-1 = 0..{num_rows - 1}, got {int(rows.min())}..{int(rows.max())}"
        )


def embedding_rows(
    embeddings: Any,  # M tensors [N, D], or one [L, D]
    labels: Any,  # [N], or [L] for one tensor
    present: Any,  # [N, M] bool, or [L] for one tensor
) -> tuple[Tensor, Tensor, Tensor | None]:  # [L, D], [L] int64, [L] bool
    """What the contrastive ops take, of their public arguments; modality by modality."""
    if isinstance(embeddings, Tensor):
        x = float_tensor("embeddings", embeddings)
        if x.ndim != 2:
            raise ValueError(
                f"embeddings must be M tensors [N, D] or one [L, D], got {list(x.shape)}"
            )
        if labels is None:
            raise ValueError(
                "labels must be given for one tensor of embeddings, got None: which rows belong to "
                "one instance is known only for a list of modalities"
            )
        codes = label_codes(labels, len(x), x.device)
        check_present(present, (len(x),), "[L]", x.device)
        return x, codes, present
    parts = modalities("embeddings", embeddings)
    same_form("embeddings", parts, "[N, D]")
    num_rows, device = parts[0].shape[0], parts[0].device
    if labels is None:
        codes = torch.arange(num_rows, device=device).repeat(len(parts))
    else:
        codes = label_codes(labels, num_rows, device, repeat=len(parts))
    check_present(present, (num_rows, len(parts)), "[N, M]", device)
    return torch.cat(parts), codes, None if present is None else present.T.reshape(-1)


def reconstruction_target(latents: Any, reconstruction: Any) -> None:
    """M latents [N, D_m] and what to compare them with, [N, sum of D_m]."""
    parts = modalities("latents", latents)
    for m, x in enumerate(parts):
        if x.ndim != 2:
            raise ValueError(f"latents[{m}] must have shape [N, D], got {list(x.shape)}")
    float_tensor("reconstruction", reconstruction)
    width = sum(x.shape[1] for x in parts)
    shaped("reconstruction", reconstruction, (len(parts[0]), width), "[N, sum of D_m]")
    on_device("reconstruction", reconstruction, parts[0].device, "latents")


def latent_dims(value: Any) -> tuple[int, ...]:
    """At least two widths."""
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise TypeError(f"latent_dims must be a list of widths, one a modality, got {value!r}")
    if len(value) < 2:
        raise ValueError(f"latent_dims must hold at least 2 modalities, got {list(value)}")
    for width in value:
        whole("latent_dims", width)
    return tuple(value)


def whole(name: str, value: object, least: int = 1) -> None:
    """A Python int of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be int, got {type(value).__name__}")
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def fusion_output(logits: Any, num_rows: int, num_classes: int) -> None:
    """Logits for every row."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"fusion must return a tensor of logits, got {type(logits).__name__}")
    if tuple(logits.shape) != (num_rows, num_classes):
        raise ValueError(
            f"fusion must return logits [rows, C] = {[num_rows, num_classes]}, "
            f"got {list(logits.shape)}"
        )


def finite(name: str, value: object) -> float:
    """A finite Python number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def declared_latents(latents: Any, widths: tuple[int, ...]) -> list[Tensor]:
    """M tensors [N, ..., D_m] with the widths a module was made for."""
    parts = modalities("latents", latents)
    if len(parts) != len(widths):
        raise ValueError(
            f"latents must hold {len(widths)} modalities as latent_dims {list(widths)} says, "
            f"got {len(parts)}"
        )
    for m, (z, width) in enumerate(zip(parts, widths, strict=True)):
        if z.shape[-1] != width:
            raise ValueError(
                f"latents[{m}] must end in {width} as latent_dims {list(widths)} says, "
                f"got {list(z.shape)}"
            )
    return parts


def class_labels(labels: Tensor, num_classes: int) -> None:
    """Class numbers in 0..C-1."""
    if labels.dtype.is_floating_point:
        raise TypeError(f"labels must be class numbers (integers) here, got {labels.dtype}")
    if may_read(labels) and ((labels < 0) | (labels >= num_classes)).any():
        raise ValueError(
            f"labels must be in 0..{num_classes - 1}, got {int(labels.min())}..{int(labels.max())}"
        )
