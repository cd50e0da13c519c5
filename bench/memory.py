"""Peak memory of a call on the CPU, each measured in a process of its own.

The process makes the inputs, runs the provider once on next to no data (libraries load, threads
start), notes its resident memory, resets the kernel's peak counter and runs the case once, forward
and backward. Peak minus the note minus the gradients is what the call needed above its inputs and
gradients. A compiled provider runs the case once before, since the compiler's memory is not the
call's, and gives what that freed back to the system.
"""

import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

from bench.case import Case
from bench.registry import benchmarks

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def _resident(field: str) -> int:
    """VmRSS (now) or VmHWM (peak), in bytes."""
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024


def _run(case: Case, provider_name: str) -> int:
    from bench.inputs import make_inputs

    provider = benchmarks()[case.op].provider(provider_name)
    if not provider.compiled:
        provider.forward(make_inputs(case.tiny()))().backward()
    inputs = make_inputs(case)
    forward = provider.forward(inputs)
    if provider.compiled:
        forward().backward()
        for leaf in inputs.leaves():
            leaf.grad = None
    rise = peak_rise(lambda: forward().backward())
    gradients = sum(x.grad.nbytes for x in inputs.leaves() if x.grad is not None)
    return max(0, rise - gradients)


def peak_rise(call: Callable[[], object]) -> int:
    """Bytes that resident memory rises by at most while this process makes a call; Linux only."""
    gc.collect()
    _trim()
    before = _resident("VmRSS")
    CLEAR.write_text("5")
    call()
    return _resident("VmHWM") - before


def _trim() -> None:
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)


def _child(case: Case, provider_name: str, num_threads: int, result: Connection) -> None:
    torch.set_num_threads(num_threads)
    result.send(_run(case, provider_name))


def peak_bytes(case: Case, provider_name: str) -> int | None:
    """Bytes above inputs and gradients; None where that cannot be measured."""
    if sys.platform != "linux":
        return None
    # its server has imported everything and started no thread, so a fork of it is clean and quick
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.memory", "bench.inputs", "bench.bench_mcr_loss"])
    receive, send = context.Pipe(duplex=False)
    child = context.Process(
        target=_child, args=(case, provider_name, torch.get_num_threads(), send)
    )
    child.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:  # it died, for want of memory most likely
        return None
    finally:
        child.join()
