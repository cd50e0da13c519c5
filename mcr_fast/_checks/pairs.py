"""Checks of what permuted_divergence takes beside the contributions."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mcr_fast._checks.options import divergence_options, subset_bits
from mcr_fast._checks.permutations import donors as check_donors
from mcr_fast._checks.rows import check_present, check_weight, exclusion_codes
from mcr_fast._checks.tensors import float_tensor, no_infinite_logits, on_device, shaped
from mcr_fast._names import Backend, CleanPath, Divergence, Exclude, Strategy, Subsets
from mcr_fast.ops._backend import resolve
from mcr_fast.ops._limits import Call
from mcr_fast.ops._modes import recorded
from mcr_fast.sampling import CyclicPermutations


def kernel_reads(op: str, backend: Backend | None, device: torch.device, modalities: int) -> bool:
    """Whether a CPU kernel is to run: it reads indices and weights, and raises, by itself.

    Then they are not read here, unless it has raised: what was wrong is said in one place.
    """
    if device.type != "cpu" or backend not in (None, "cpu") or recorded():
        return False
    return resolve(op, backend, device, call=Call(modalities=modalities)) == "cpu"


def divergence_arguments(
    shape: Sequence[int],  # M, N, C
    device: torch.device,
    permutations: Tensor | CyclicPermutations | None,
    bias: Tensor | None,
    read: bool,
    *,
    strategy: Strategy = "greedy",
    clean_path: CleanPath = "shared",
    subsets: Subsets = "all",
    divergence: Divergence = "jsd",
    exclude: Exclude | None = None,
    labels: Tensor | None = None,
    present: Tensor | None = None,
    sample_weight: Tensor | None = None,
    backend: Backend | None = None,
) -> tuple[tuple[Tensor | None, ...], dict[str, Any]]:
    """The tensors of permuted_divergence after the bias, and its options in order, checked.

    With `read` their values are read too, whether a kernel does so or not.
    """
    num_modalities, num_rows, num_classes = shape
    divergence_options(strategy, clean_path, divergence, exclude, backend)
    bits = subset_bits(subsets, num_modalities)
    if not read and (permutations is not None or sample_weight is not None):
        read = not kernel_reads("permuted_divergence", backend, device, num_modalities)
    order, donors = check_donors(
        permutations, num_modalities, num_rows, device, in_graph=False, read=read
    )
    if bias is not None:
        float_tensor("bias", bias)
        shaped("bias", bias, (num_classes,), "[C]")
        on_device("bias", bias, device, "contributions")
        no_infinite_logits("bias", bias)
    check_present(present, (num_rows, num_modalities), "[N, M]", device)
    check_weight("sample_weight", sample_weight, num_rows, "[N]", device, read=read)
    codes = exclusion_codes(exclude, labels, num_rows, device)
    options = {
        "subsets": bits,
        "strategy": strategy,
        "clean_path": clean_path,
        "divergence": divergence,
        "exclude": exclude or "none",
    }
    return (order, donors, codes, present, sample_weight), options
