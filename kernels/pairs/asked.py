"""The arguments of permuted_divergence as launchers pass them on, and what follows from them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mcr_fast._names import OF_SOFTMAX
from mcr_fast.kernels.arguments import check_pairs, choice
from mcr_fast.kernels.divergence import KINDS
from mcr_fast.kernels.pairs.donors import EXCLUDE, EXHAUSTIVE, SHIFTS, TABLE, packed
from mcr_fast.kernels.pairs.own_side import CLEAN_PATHS, OUTSIDERS


@dataclass
class Asked:
    """In the order of the op."""

    contributions: Tensor  # [M, N, C]
    bias: Tensor | None  # [C]
    order: Tensor | None  # [N]
    donors: Tensor | None  # [1 or M, K] shifts with an order, [1 or M, K, N] rows without
    labels: Tensor | None  # [N]
    present: Tensor | None  # [N, M]
    sample_weight: Tensor | None  # [N]
    subsets: list[int]
    strategy: str
    clean_path: str
    divergence: str
    exclude: str

    def check(self) -> None:
        """Raise ValueError for what the op does not take."""
        choice("strategy", self.strategy, OUTSIDERS)
        choice("clean_path", self.clean_path, CLEAN_PATHS)
        choice("divergence", self.divergence, KINDS)
        choice("exclude", self.exclude, EXCLUDE)
        check_pairs(
            self.contributions, self.bias, self.order, self.donors, self.labels, self.present,
            self.sample_weight, self.subsets, self.exclude,
        )  # fmt: skip

    @property
    def num_permutations(self) -> int:
        """How many donors a row has."""
        return self.contributions.shape[1] - 1 if self.donors is None else self.donors.shape[1]

    @property
    def scheme(self) -> int:
        """How its donors are given."""
        if self.donors is None:
            return EXHAUSTIVE.value
        return TABLE.value if self.order is None else SHIFTS.value

    @property
    def single(self) -> bool:
        """Whether every subset has one member."""
        return all(subset & (subset - 1) == 0 for subset in self.subsets)

    @property
    def masked(self) -> bool:
        """Whether a pair can be dropped or weigh something else than 1."""
        given = self.present is not None or self.sample_weight is not None
        return given or self.exclude != "none"

    @property
    def share(self) -> float:
        """1 over the terms of a mean, and over the pairs where all of them weigh 1."""
        _, num_rows, num_classes = self.contributions.shape
        terms = 1 if self.divergence in OF_SOFTMAX else num_classes
        return 1.0 / (terms * (1 if self.masked else num_rows * self.num_permutations))

    def pairs(self) -> dict[str, Tensor | int | bool | None]:
        """The arguments of every kernel that goes through pairs; masks as they were given."""
        num_modalities, num_rows, _ = self.contributions.shape
        present = None if self.present is None else self.present.contiguous().view(torch.int8)
        return {
            "donors_ptr": contiguous(self.donors),
            "order_ptr": None if self.donors is None else contiguous(self.order),
            "labels_ptr": contiguous(self.labels),
            "present_ptr": present,
            "weight_ptr": contiguous(self.sample_weight),
            "num_modalities": num_modalities,
            "num_rows": num_rows,
            "num_permutations": self.num_permutations,
            **packed(self.subsets),
            "SCHEME": self.scheme,
            "OWN_DONORS": self.donors is not None and self.donors.shape[0] > 1,
            "EXCLUDE": EXCLUDE[self.exclude],
        }


def contiguous(x: Tensor | None) -> Tensor | None:
    """The tensor, laid out without gaps."""
    return None if x is None else x.contiguous()
