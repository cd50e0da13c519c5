"""Puts the CUDA library, compiled for the host, in the place of the CPU one.

In a process with MCR_FAST_EMULATED=1 `backend="cpu"` is then the CUDA kernels. By hand,
MCR_FAST_EMULATED=address with LD_PRELOAD of libasan.so and libstdc++.so and
ASAN_OPTIONS=detect_leaks=0:detect_stack_use_after_return=0 finds accesses outside of tensors.
"""

import ctypes
import os

import torch
from emulated import build

_registered = []


def _mm_dtype_out(a, b, out_dtype, *, out):
    if os.environ.get("MCR_EMULATED_NOTHING"):  # it is counted, and not run
        return out
    with torch.autocast("cpu", enabled=False):  # mm.dtype_out does not know it
        return out.copy_(a.to(out_dtype) @ b.to(out_dtype))


def load():
    """For the whole process, before any test is collected."""
    sanitize = os.environ["MCR_FAST_EMULATED"] == "address"
    path = str(build.build(sanitize=sanitize))
    torch.ops.load_library(path)
    _registered.append(ctypes.CDLL(path))
    library = torch.library.Library("aten", "IMPL")
    library.impl("mm.dtype_out", _mm_dtype_out, "CPU")
    _registered.append(library)

    from mcr_fast import env

    assert env.cpu_capability() == "emulated CUDA"


def launches() -> list[str]:
    """Names of the kernels that were launched since it was last asked."""
    ask = _registered[0].emulated_launches
    ask.restype = ctypes.c_char_p
    return ask().decode().split()


def left() -> torch.Tensor:
    """Marks of pairs that the last band left to the exact kernels: [rows and donors, S * N]."""
    ask = _registered[0].emulated_left
    marks = torch.empty(ask(None), dtype=torch.int32)
    ask(ctypes.c_void_p(marks.data_ptr()))
    return marks.view(2, -1)
