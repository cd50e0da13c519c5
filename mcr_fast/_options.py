"""The options of `MCRLoss`: looked at whenever one is set, so that a step looks at none."""

from collections.abc import Callable
from typing import Any, Literal, get_args

from torch import nn

from mcr_fast import _checks as checks
from mcr_fast._ceb import late_ceb_head, warn_of_late_head
from mcr_fast._checks import Backend, CleanPath, Divergence, Exclude, Strategy, Subsets
from mcr_fast._checks.ranks import EXCHANGES
from mcr_fast._names import BACKENDS, CLEAN_PATHS, DIVERGENCES, STRATEGIES, SUBSETS
from mcr_fast.distributed.held import OfRanks
from mcr_fast.sampling import SCHEMES, Scheme

Contrastive = Literal["nt_xent", "sup_con"]
Perturbation = Literal["permute", "zero", "noise"]
CEBSource = Literal["logits", "labels"]
FusionMode = Literal["eval", "own"]

# What an option may be: one of these words,
_NAMES: dict[str, tuple[str | None, ...]] = {
    "strategy": STRATEGIES,
    "clean_path": CLEAN_PATHS,
    "subsets": SUBSETS,
    "divergence": DIVERGENCES,
    "exclude": (None, *get_args(Exclude)),
    "backend": (None, *BACKENDS),
    "scheme": SCHEMES,
    "contrastive": get_args(Contrastive),
    "perturbation": get_args(Perturbation),
    "ceb_source": get_args(CEBSource),
    "fusion_mode": get_args(FusionMode),
    "num_permutations": ("all",),
    "chunk_rows": (None,),
    "exchange": EXCHANGES,
    "rows": (None,),
}
# or a number.
_NUMBERS: dict[str, Callable[[str, Any], int | float]] = {
    "num_permutations": checks.whole,
    "chunk_rows": checks.whole,
    "rows": checks.whole,
    "mipd_weight": checks.finite,
    "contrastive_weight": checks.finite,
    "ceb_weight": checks.finite,
    "temperature": checks.positive,
}
_SIZES = ("latent_dims", "num_classes")  # of the parts that a loss has


class MCROptions(OfRanks):
    """The options as attributes: read at no cost, checked and made Python's own when they are set.

    Not properties, of which each read is a call, some thirty a step.
    """

    latent_dims: tuple[int, ...]
    num_classes: int
    strategy: Strategy
    clean_path: CleanPath
    divergence: Divergence
    subsets: Subsets
    exclude: Exclude | None
    scheme: Scheme
    num_permutations: int | Literal["all"]
    shared_donor: bool
    perturbation: Perturbation
    contrastive: Contrastive
    temperature: float
    ceb_source: CEBSource
    mipd_weight: float
    contrastive_weight: float
    ceb_weight: float
    chunk_rows: int | None
    fusion_mode: FusionMode
    backend: Backend | None
    ceb_head: nn.Module | None
    _subsets: tuple[int, ...]
    _head_is_late = False
    _head_may_drift = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SIZES and name in self.__dict__:
            raise AttributeError(
                f"{name} cannot be set after MCRLoss was made, parts of it have that size; make "
                "another one"
            )
        if name in _NAMES or name in _NUMBERS:
            value = self._option(name, value)
        head = None
        if name == "ceb_weight" and value != 0 and getattr(self, "ceb_head", self) is None:
            head = late_ceb_head(self.num_classes, self.latent_dims)
        super().__setattr__(name, value)
        if name == "subsets":
            self._subsets = checks.subset_bits(value, len(self.latent_dims))
        elif head is not None:
            self.ceb_head = head
            self._head_is_late = self._head_may_drift = True
            warn_of_late_head()  # last, for it may be an error

    def _option(self, name: str, value: Any) -> Any:
        """The value as it is kept."""
        known = _NAMES.get(name, ())
        word = value is None or isinstance(value, str)
        if name in _NUMBERS and not (word and value in known):
            return _NUMBERS[name](name, value)
        checks.choice(name, value, known)
        if name == "divergence":
            checks.enough_classes(self.num_classes, value)
        return value

    def extra_repr(self) -> str:
        """The options."""
        names = (
            *("latent_dims", "num_classes", "strategy", "num_permutations", "scheme"),
            *("mipd_weight", "contrastive_weight", "ceb_weight", "subsets", "divergence"),
        )
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def _key(self) -> tuple[Any, ...]:
        """What the checks of a step and the choice of backend look at, beside its tensors."""
        terms = (self.mipd_weight != 0, self.contrastive_weight != 0, self.ceb_weight != 0)
        how = (self.divergence, self.strategy, self.clean_path, self.exclude, self.perturbation)
        others = (self.contrastive, self.temperature, self.backend)
        drawn = (self.num_permutations, self.scheme, self.shared_donor)
        return (*terms, *how, *others, *drawn, self.num_classes, self._subsets)
