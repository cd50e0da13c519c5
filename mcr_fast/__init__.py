"""Fused kernels for the Multimodal Competition Regularizer (MCR), as a drop-in loss."""

from mcr_fast import env
from mcr_fast._version import __version__
from mcr_fast.ops._backend import backends

env.load_libraries()

__all__ = ["__version__", "backends"]
