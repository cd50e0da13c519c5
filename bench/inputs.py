"""The one place that makes what the providers compute on."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

import mcr_fast
from bench.case import Case
from mcr_fast.sampling import CyclicPermutations


@dataclass
class Inputs:
    """What a case's providers take; every provider gets tensors of its own with the same values."""

    case: Case
    latents: list[Tensor] = field(default_factory=list)  # M tensors [N, D]
    linear: nn.Linear | None = None  # [C, M*D]
    fusion: mcr_fast.AdditiveFusion | None = None  # the same layer, its parameters shared
    contributions: Tensor | None = None  # [M, N, C], if the case starts there
    bias: Tensor | None = None  # [C]
    sample: Tensor | CyclicPermutations | None = None  # the donors as ours takes them
    table: Tensor | None = None  # [K, N], the same donors as everyone else takes them
    labels: Tensor | None = None  # [N]
    reconstruction: Tensor | None = None  # [N, M*D]
    perturbed: Tensor | None = None  # [R, C]
    clean: Tensor | None = None  # [N, C]
    rows: Tensor | None = None  # [R]
    module: nn.Module | None = None  # a loss module that a provider keeps between calls

    def leaves(self) -> list[Tensor]:
        """The tensors that get gradients, in a fixed order."""
        single = [self.contributions, self.reconstruction, self.perturbed, self.clean]
        weights = [] if self.linear is None else [self.linear.weight]
        found = [*self.latents, *single, *weights, self.bias]
        return [x for x in found if x is not None and x.requires_grad]

    def all_labels(self) -> Tensor:  # [M*N]
        """The labels of the modalities' rows, one modality after the other."""
        assert self.labels is not None
        return self.labels.repeat(self.case.M)


def make_inputs(
    case: Case,
    *,
    dtype: torch.dtype | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> Inputs:
    """The inputs of a case, drawn in float32 and then rounded to the case's dtype.

    With another `dtype` the rounded values are converted: float64 gives the inputs of the truth.
    All are drawn on the CPU, so that a device gets the same values.
    """
    g = torch.Generator().manual_seed(seed)
    to = {"dtype": dtype or case.torch_dtype, "device": device}

    def normal(*shape: int, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(*shape, generator=g) * scale
        return drawn.to(case.torch_dtype).to(**to).requires_grad_()

    inputs = Inputs(case)
    if case.op == "row_divergence":
        inputs.perturbed = normal(case.K * case.N, case.C)
        inputs.clean = normal(case.N, case.C)
        inputs.rows = torch.arange(case.N, device=device).repeat(case.K)
        return inputs
    if case.start == "contributions":
        inputs.contributions = normal(case.M, case.N, case.C)
        inputs.bias = normal(case.C)
    else:
        inputs.latents = [normal(case.N, case.D) for _ in range(case.M)]
    if case.start == "latents":
        inputs.linear = nn.Linear(case.M * case.D, case.C, **to)
        # as nn.Linear starts, from this generator
        width = (case.M * case.D) ** -0.5
        inputs.linear.weight = nn.Parameter(normal(case.C, case.M * case.D, scale=width).detach())
        inputs.linear.bias = nn.Parameter(normal(case.C, scale=width).detach())
        inputs.fusion = mcr_fast.AdditiveFusion.from_linear(inputs.linear, [case.D] * case.M)
        inputs.bias = inputs.linear.bias
    if case.op == "reconstruction_loss":
        inputs.reconstruction = normal(case.N, case.M * case.D)
    if case.op in ("nt_xent", "sup_con", "mcr_loss"):
        inputs.labels = torch.randint(case.C, (case.N,), generator=g).to(device)
    donors = _donors(case, g)
    inputs.sample, inputs.table = (d if d is None else d.to(device) for d in donors)
    return inputs


def _donors(
    case: Case, g: torch.Generator
) -> tuple[Tensor | CyclicPermutations | None, Tensor | None]:
    """(as ours takes them, as a table [K, N])."""
    if case.donors in ("", "drawn"):
        return None, None
    if case.donors == "exhaustive":
        rows = torch.arange(case.N)
        return None, (rows + torch.arange(1, case.N)[:, None]) % case.N
    sample = mcr_fast.sample_permutations(case.K, case.N, scheme=case.donors, generator=g)
    return sample, sample if isinstance(sample, Tensor) else sample.index()
