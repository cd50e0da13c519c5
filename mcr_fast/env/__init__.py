"""What this process can run, and why not the rest: `python -m mcr_fast.env` prints it.

Environment variables that the package reads:

- ``MCR_FAST_CHECK=1``: also run the argument checks that need a host synchronisation
- ``MCR_FAST_CPU_CAPABILITY``: use the instruction set of that name (``portable``, ``avx2``,
  ``avx512``) and not the best
- ``TRITON_INTERPRET=1`` (Triton's own): ``backend="triton"`` takes CPU tensors, interpreted, slowly
"""

import sys
import warnings

if "mcr_fast.env" in sys.orig_argv and sys.argv[:1] == ["-m"]:
    # The command says the same in its own words. Before it runs, Python imports the package.
    warnings.filterwarnings("ignore", "mcr_fast runs without compiled", RuntimeWarning)

from mcr_fast._libraries import CPU_LIBRARY as CPU_LIBRARY
from mcr_fast._libraries import CUDA_LIBRARY as CUDA_LIBRARY
from mcr_fast._libraries import check_enabled as check_enabled
from mcr_fast._libraries import cpu_capability as cpu_capability
from mcr_fast._libraries import cpu_library_loaded as cpu_library_loaded
from mcr_fast._libraries import cuda_load_error as cuda_load_error
from mcr_fast._libraries import has_kernel as has_kernel
from mcr_fast._libraries import load_error as load_error
from mcr_fast._libraries import load_libraries as load_libraries
from mcr_fast._libraries import triton_interpreted as triton_interpreted
from mcr_fast._libraries import why_no_triton as why_no_triton
from mcr_fast.env._command import main as main
from mcr_fast.env._command import report as report
