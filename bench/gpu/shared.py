"""The tests' inputs, bounds and tolerances: a GPU is held to the same table as a CPU."""

import sys

from bench.machine import ROOT

# its helpers are modules that tests import from beside them
sys.path.insert(0, str(ROOT / "tests"))

import contrastive
import divergences
from tolerances import check_gradient, check_value

__all__ = ["check_gradient", "check_value", "contrastive", "divergences"]
