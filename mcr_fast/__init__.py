"""Fused kernels for the Multimodal Competition Regularizer (MCR), as a drop-in loss."""

from mcr_fast import env as env
from mcr_fast import functional, recipes
from mcr_fast._version import __version__
from mcr_fast.fusion import AdditiveFusion
from mcr_fast.modules import MCRLoss, MCROutput, NTXentLoss, SupConLoss
from mcr_fast.monitor import MCRMonitor
from mcr_fast.objective import MCRObjective, ObjectiveOutput
from mcr_fast.ops._backend import backends
from mcr_fast.sampling import CyclicPermutations, sample_permutations

__all__ = [
    "AdditiveFusion",
    "CyclicPermutations",
    "MCRLoss",
    "MCRMonitor",
    "MCRObjective",
    "MCROutput",
    "NTXentLoss",
    "ObjectiveOutput",
    "SupConLoss",
    "__version__",
    "backends",
    "functional",
    "recipes",
    "sample_permutations",
]
