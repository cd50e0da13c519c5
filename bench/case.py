"""A case: one size of one op, and the memory that formulations of it need."""

from dataclasses import dataclass, replace

import torch


@dataclass(frozen=True)
class Case:
    """One size of one op. A field that the op does not know is 0 or empty."""

    op: str
    N: int = 0
    D: int = 0
    C: int = 0
    K: int = 0
    M: int = 2
    dtype: str = "float32"
    donors: str = ""  # "uniform", "cyclic", "exhaustive"; "drawn": each call draws its own
    start: str = ""  # "latents": with the linear fusion; "contributions": without
    sweeps: tuple[str, ...] = ()  # the axes of plots on which this case is a point
    headline: bool = False  # runs in every mode; those of MCRLoss stand in the README
    quick: bool = False  # runs with --quick and in the regression tests

    @property
    def L(self) -> int:
        """Embedding rows of all modalities."""
        return self.M * self.N

    @property
    def name(self) -> str:
        """The key of the case in results."""
        rows = f"L{self.L}" if self.op in ("nt_xent", "sup_con") else f"N{self.N}"
        sizes = [rows, *(f"{axis}{value}" for axis in "CKDM" if (value := getattr(self, axis)))]
        return "_".join([*sizes, self.dtype, *filter(None, (self.donors, self.start))])

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    @property
    def num_pairs(self) -> int:
        """Pairs (row, donor) of all single-modality subsets: rows of the divergence."""
        if self.op == "row_divergence":
            return self.K * self.N
        permutations = self.N - 1 if self.donors == "exhaustive" else self.K
        return self.M * permutations * self.N

    def pair_bytes(self, tensors: int) -> float:
        """Memory of that many float32 tensors [pairs, C]."""
        return 4 * tensors * self.num_pairs * self.C

    def dense_bytes(self, matrices: int) -> float:
        """Memory of that many matrices [L, L]."""
        return matrices * self.L**2 * self.torch_dtype.itemsize

    def tiny(self) -> "Case":
        """The same code path on next to no data."""
        return replace(self, N=min(self.N, 8), D=min(self.D, 8), C=min(self.C, 4), K=min(self.K, 4))


def unique_cases(*groups: list[Case]) -> tuple[Case, ...]:
    """One case per name, with the roles of all its namesakes."""
    found: dict[str, Case] = {}
    for case in (case for group in groups for case in group):
        known = found.setdefault(case.name, case)
        found[case.name] = replace(
            known,
            sweeps=tuple(dict.fromkeys(known.sweeps + case.sweeps)),
            headline=known.headline or case.headline,
            quick=known.quick or case.quick,
        )
    return tuple(found.values())
