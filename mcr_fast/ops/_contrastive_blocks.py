"""The contrastive losses by blocks of columns, by whichever backend serves."""

from mcr_fast.reference.contrastive_blocks import (
    contrastive_gradient_reference as contrastive_gradient,
)
from mcr_fast.reference.contrastive_blocks import contrastive_pairs_reference as contrastive_pairs
from mcr_fast.reference.contrastive_blocks import contrastive_sums_reference as contrastive_sums

__all__ = ["contrastive_gradient", "contrastive_pairs", "contrastive_sums"]
