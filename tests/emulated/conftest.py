"""Tests of the CUDA kernels without a GPU; tests/test_cuda_emulated.py runs them.

In that process the emulated library stands in for the CPU one: `backend="cpu"` is the CUDA kernels.
By hand, MCR_FAST_EMULATED=address with LD_PRELOAD of libasan.so and libstdc++.so and
ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 finds accesses outside of tensors.
"""

import os
import sys
from pathlib import Path

import torch

EMULATED = os.environ.get("MCR_FAST_EMULATED")
collect_ignore_glob = [] if EMULATED else ["test_*.py"]

_registered = []


def _mm_dtype_out(a, b, out_dtype, *, out):
    return out.copy_(a.to(out_dtype) @ b.to(out_dtype))


if EMULATED:
    sys.path[:0] = [
        str(Path(__file__).resolve().parent),
        str(Path(__file__).resolve().parent.parent),
    ]
    import build

    torch.ops.load_library(str(build.build(sanitize=EMULATED == "address")))
    library = torch.library.Library("aten", "IMPL")
    library.impl("mm.dtype_out", _mm_dtype_out, "CPU")
    _registered.append(library)

    from mcr_fast import env

    assert env.cpu_capability() == "emulated CUDA"
