"""Joint training: the cross-entropy of the fused logits, nothing else."""

from ..strategy import Strategy


class Joint(Strategy):
    """CE(f)."""
