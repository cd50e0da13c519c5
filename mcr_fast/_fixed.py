"""Numbers that look random and are the same every time: what a loss in eval mode draws from."""

import math

import torch
from torch import Tensor

# With it a number's place, and which draw it is of, are hashed.
SEED = 0x4D4352
_BITS = (1 << 32) - 1


class Fixed:
    """A source of numbers for one forward that is nobody's generator and moves none.

    The same arithmetic on whole numbers on every device, so that all of them draw the same, and
    that a compiler, torch.export, vmap and a captured graph take it as any other.
    """

    def __init__(self, device: torch.device, draws: int = 0) -> None:
        self.device = device
        self._draws = draws  # so far

    def keys(self, *shape: int) -> Tensor:
        """Numbers to sort by, 0..2^32-1, all different."""
        self._draws += 1
        x = torch.arange(math.prod(shape), device=self.device)
        # Multipliers below 2^31, so that no product of 32 bits overflows. Every step can be undone,
        # so what was different stays so.
        x = (x + SEED + self._draws * 0x9E3779B9) & _BITS
        x = ((x ^ (x >> 16)) * 0x21F0AAAD) & _BITS
        x = ((x ^ (x >> 15)) * 0x735A2D97) & _BITS
        return (x ^ (x >> 15)).view(shape)

    def permutation(self, count: int) -> Tensor:  # [count]
        """A permutation of 0..count-1."""
        return self.keys(count).argsort()

    def below(self, bound: int) -> Tensor:  # [1]
        """One of 0..bound-1."""
        return self.keys(1) % bound

    def normal(self, *shape: int) -> Tensor:  # float64
        """Standard normal numbers."""
        return torch.special.ndtri((self.keys(*shape).double() + 0.5) / (_BITS + 1))
