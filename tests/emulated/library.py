"""Puts the CUDA library, compiled for the host, in the place of the CPU one.

In a process with MCR_FAST_EMULATED=1 `backend="cpu"` is then the CUDA kernels. By hand,
MCR_FAST_EMULATED=address with LD_PRELOAD of libasan.so and libstdc++.so and
ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 finds accesses outside of tensors.
"""

import os

import torch
from emulated import build

_registered = []


def _mm_dtype_out(a, b, out_dtype, *, out):
    with torch.autocast("cpu", enabled=False):  # mm.dtype_out does not know it
        return out.copy_(a.to(out_dtype) @ b.to(out_dtype))


def load():
    """For the whole process, before any test is collected."""
    sanitize = os.environ["MCR_FAST_EMULATED"] == "address"
    torch.ops.load_library(str(build.build(sanitize=sanitize)))
    library = torch.library.Library("aten", "IMPL")
    library.impl("mm.dtype_out", _mm_dtype_out, "CPU")
    _registered.append(library)

    from mcr_fast import env

    assert env.cpu_capability() == "emulated CUDA"
