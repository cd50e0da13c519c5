"""`python -m bench gpu` with stand-ins for a GPU: `python tests/rehearsal.py bench gpu ...`.

The command and its processes run as they are, each started by this program instead of by Python.
In the place of the device: CPU tensors of tiny sizes, Triton's interpreter, and the emulator for
the CUDA C++ kernels. In the place of tests/suite: a made-up one, named by REHEARSAL_SUITE.
"""

import contextlib
import os
import runpy
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CARD = {"is_available": True, "get_device_name": "a rehearsal", "get_device_capability": (9, 0)}


def answer(value):
    return lambda *_, **__: value


def stand_in_for_the_card():
    """What any process asks of a GPU."""
    import torch

    memory = {"mem_get_info": (10**9, 10**9), "empty_cache": None}
    for name, value in {**CARD, **memory}.items():
        setattr(torch.cuda, name, answer(value))
    torch.compile = lambda function, **_: function

    from bench.gpu import command, rows
    from mcr_fast.ops.registry import OPS

    def serving(op):
        return [b for b in rows.ACCELERATED if b in OPS[rows.LIKE.get(op, op)].backends]

    rows.serving = command.serving = serving


def stand_in_for_the_suite():
    """The command's processes are started by this program, and run the made-up suite."""
    from bench.gpu import processes, sanitize, suite, timing

    def python(module, *arguments):
        return [sys.executable, str(Path(__file__)), module, *map(str, arguments)]

    processes.ROOT = Path(os.environ["REHEARSAL_SUITE"])
    suite.SUITE = "suite"
    suite.python = timing.python = python
    sanitize.find = lambda: None


def stand_in_for_the_kernels():
    """Tiny inputs on the CPU, for kernels that are emulated or interpreted; one call each."""
    from bench import gpu_rates, gpu_timer, inputs, measure, registry
    from bench.floors import RATES, rate_figure
    from bench.gpu import probe as gpu_probe
    from bench.gpu import profile as gpu_profile
    from bench.timer import percentiles

    forward = registry.Provider.forward

    def emulated(self, given):
        if getattr(self.run, "keywords", {}).get("backend") == "cuda":
            self = replace(self, run=partial(self.run, backend="cpu"))
        return forward(self, given)

    def figures(seconds):
        for name in RATES:
            time.sleep(seconds)
            yield rate_figure(name, 1e12)

    measure.make_inputs = lambda case, device: inputs.make_inputs(case.tiny())
    registry.Provider.forward = emulated
    gpu_rates.measure_rates = figures
    gpu_probe.probe = lambda: iter(())
    gpu_profile.kernels = lambda step: {"_own_side_kernel": (1, 2.5)}
    gpu_timer.replayed = lambda step: step
    gpu_timer.time_step = lambda step, seconds: percentiles([step.seconds()])
    gpu_timer.peak_bytes = answer(10**6)


def main(module, *arguments):
    if module == "bench.gpu.measure":
        os.environ["TRITON_INTERPRET"] = "1"
        from suite import interpreter

        interpreter.load()
        if os.environ.get("REHEARSAL_EMULATED"):
            os.environ["MCR_FAST_EMULATED"] = "1"
            from emulated import library

            library.load()
    if module != "pytest":
        stand_in_for_the_card()
    if module == "bench":
        stand_in_for_the_suite()
    if module == "bench.gpu.measure":
        stand_in_for_the_kernels()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]
    with contextlib.suppress(BrokenPipeError):
        main(*sys.argv[1:])
