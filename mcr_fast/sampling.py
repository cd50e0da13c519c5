"""Which rows donate to which: random permutations of the batch."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mcr_fast._checkpointing import generator_of_step
from mcr_fast._fixed import Fixed
from mcr_fast._numbers import whole
from mcr_fast.pairing import donor_table

Scheme = Literal["uniform", "cyclic"]
SCHEMES: tuple[str, ...] = get_args(Scheme)

__all__ = ["CyclicPermutations", "sample_permutations"]


@dataclass(frozen=True, eq=False)
class CyclicPermutations:
    """Permutations pi_k = sigma o shift_{s_k} o sigma^-1 of one random order sigma.

    The donor of row ``order[a]`` is ``order[(a + shift) % N]``: after one reorder of the rows every
    permutation is a shift, so donors are contiguous in memory.

    Attributes:
        order: [N] int64, sigma.
        shifts: [K] int64, or [M, K] when each modality has its own donors; in 1..N-1, distinct
            along K.
    """

    order: Tensor  # [N] int64
    shifts: Tensor  # [K] or [M, K] int64

    @property
    def num_permutations(self) -> int:
        """K."""
        return self.shifts.shape[-1]

    def index(self) -> Tensor:
        """The donor table, int64: [K, N], or [M, K, N] for own donors."""
        shifts = self.shifts if self.shifts.ndim == 2 else self.shifts[None]
        table = donor_table(self.order, shifts, self.order.shape[0], self.order.device)
        return table if self.shifts.ndim == 2 else table[0]

    def to(self, device: torch.device | str) -> "CyclicPermutations":
        """The same permutations on another device."""
        return CyclicPermutations(self.order.to(device), self.shifts.to(device))


def sample_permutations(
    num_permutations: int,
    batch_size: int,
    *,
    scheme: Scheme = "cyclic",
    num_modalities: int | None = None,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> Tensor | CyclicPermutations:
    """Draw K permutations of a batch of N rows, as `permuted_divergence` and `MCRLoss` take them.

    ``"uniform"`` draws independent random permutations, in which a row can be its own donor.
    ``"cyclic"`` draws pi_k = sigma o shift_{s_k} o sigma^-1 with one random order sigma and
    distinct random shifts s_k in 1..N-1: no row is its own donor, no pair (row, donor) comes twice,
    and every donor j != i is equally likely; K = N-1 covers all pairs. The shifts are consecutive
    from a random one on, so that rows next to each other in the order have all donors but one in
    common and kernels find them in their caches. The order is random: a row's donors are any K
    others, and a mean over the pairs has the variance that scattered shifts would give it;
    docs/estimator.md has bias and variance of both schemes.

    Args:
        num_permutations: K >= 1.
        batch_size: N >= 0.
        scheme: ``"cyclic"`` or ``"uniform"``.
        num_modalities: M, to give each modality its own donors; None for donors that all share.
            Cyclic: one order sigma and M sets of K scattered shifts, all different in every k.
        generator: source of randomness; torch's default one if None.
        device: where the result goes; the generator's device if None, torch's default one without
            either.

    Returns:
        Uniform: int64 [K, N], or [M, K, N] with own donors. Cyclic: `CyclicPermutations`, whose
        ``index()`` gives that table. A cyclic sample of a batch of 0 or 1 rows, where no row has a
        donor, holds no permutation.

    Raises:
        ValueError: K < 1, N < 0, M < 1, an unknown scheme; for cyclic K > N-1, and M > N-1 with own
            donors, because there are only N-1 shifts.
        TypeError: a count that is no whole number, of Python or of another library such as numpy;
            a generator of another kind than torch's.

    Note:
        The same generator state gives the same permutations; nothing waits for the device. A draw
        on a generator of another device than `device` is copied there.

    Reference:
        Algorithm 1 of arXiv 2411.07335, which draws uniform permutations.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> sample = sample_permutations(3, 4, generator=generator)
        >>> sample.index().shape
        torch.Size([3, 4])
        >>> bool((sample.index() == torch.arange(4)).any())
        False
    """
    num_permutations = whole("num_permutations", num_permutations, wanted="an int")
    batch_size = whole("batch_size", batch_size, 0, wanted="an int")
    if num_modalities is not None:
        num_modalities = whole("num_modalities", num_modalities, wanted="an int")
    _check(num_permutations, batch_size, scheme, num_modalities)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator, got {type(generator).__name__}")
    device = None if device is None else _device(device)
    # None: torch's default one
    generator = generator_of_step(generator)
    source = _Random(generator, device if generator is None else generator.device)
    sample = draw_permutations(source, num_permutations, batch_size, scheme, num_modalities)
    if device is None:
        return sample
    if isinstance(sample, CyclicPermutations):
        order, shifts = (x.to(device, non_blocking=True) for x in (sample.order, sample.shifts))
        return CyclicPermutations(order, shifts)
    return sample.to(device, non_blocking=True)


def _device(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise ValueError(f"device must name one that torch knows, got {device!r}") from None


class _Random:
    """Torch's random numbers, those of the default generator without one."""

    def __init__(self, generator: torch.Generator | None, device: torch.device | None) -> None:
        self.device = device
        # a generator that is named, even as None, makes torch.export take the batch for a constant
        self._how: dict[str, Any] = {"device": device}
        if generator is not None:
            self._how["generator"] = generator

    def keys(self, *shape: int) -> Tensor:
        """Numbers to sort by; float64: with 2^-53 between them there are no ties to favour some."""
        return torch.rand(*shape, **self._how, dtype=torch.float64)

    def permutation(self, count: int) -> Tensor:  # [count]
        """A permutation of 0..count-1."""
        return torch.randperm(count, **self._how)

    def below(self, bound: int) -> Tensor:  # [1]
        """One of 0..bound-1."""
        return torch.randint(bound, (1,), **self._how)


def draw_permutations(
    source: "_Random | Fixed",
    num_permutations: int,
    batch_size: int,
    scheme: Scheme,
    num_modalities: int | None,
) -> Tensor | CyclicPermutations:
    """As `sample_permutations`, whose arguments these are, on the device of the source."""
    if scheme == "uniform":
        own = () if num_modalities is None else (num_modalities,)
        return source.keys(*own, num_permutations, batch_size).argsort(-1)
    order = source.permutation(batch_size)
    return CyclicPermutations(order, _shifts(source, num_permutations, batch_size, num_modalities))


def _shifts(
    source: "_Random | Fixed",
    num_permutations: int,
    batch_size: int,
    num_modalities: int | None,
) -> Tensor:  # [K] or [M, K]
    device = source.device
    available = max(batch_size - 1, 0)
    if available == 0:
        own = () if num_modalities is None else (num_modalities,)
        return torch.empty(*own, 0, dtype=torch.int64, device=device)
    step = torch.arange(num_permutations, device=device)
    if num_modalities is None:
        first = source.below(available)
        return (first + step) % available + 1
    # Not consecutive: K rows would take their donors from the same rows, modality by modality.
    shifts = source.permutation(available) + 1
    # modality m reads the shuffled shifts from its own starting point: distinct along k because the
    # shifts are, distinct along m because the starting points are
    start = source.permutation(available)[:num_modalities, None]
    return shifts[(start + step) % available]


def _check(num_permutations: int, batch_size: int, scheme: str, num_modalities: int | None) -> None:
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        raise ValueError(f"scheme must be one of {SCHEMES}, got {scheme!r}")
    if scheme != "cyclic" or batch_size <= 1:
        return
    if num_permutations > batch_size - 1:
        raise ValueError(
            f"num_permutations must be at most batch_size - 1 = {batch_size - 1} for "
            f"scheme='cyclic', got {num_permutations}: a batch of {batch_size} rows has no more "
            "shifts; draw fewer, or take scheme='uniform'"
        )
    if num_modalities is not None and num_modalities > batch_size - 1:
        raise ValueError(
            f"num_modalities must be at most batch_size - 1 = {batch_size - 1} for own donors with "
            f"scheme='cyclic', got {num_modalities}: {batch_size - 1} shifts cannot be different "
            "in every modality; take a larger batch, shared donors, or scheme='uniform'"
        )
