"""What a step starts on a GPU, counted without one.

Triton's launches are counted where its interpreter would run them, the CUDA library's on the
emulator; neither runs a kernel, so that any size takes no time. Operations of torch count where
they have a kernel of their own. Some of these start several kernels on a GPU (`sort`, `randperm`):
the counts are the least there can be. As a program it prints a line of JSON for each row:
`TRITON_INTERPRET=1 python tests/launches.py triton`, `MCR_FAST_EMULATED=1 python tests/launches.py
cuda`.
"""

import contextlib
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch

# nothing but a tensor's description, or memory that nothing is written to
FREE = frozenset(
    (
        *("alias", "as_strided", "broadcast_to", "detach", "detach_", "diagonal", "expand"),
        *("lift_fresh", "narrow", "permute", "select", "set_", "slice", "split"),
        *("split_with_sizes", "squeeze", "t", "transpose", "unbind", "unfold", "unsqueeze"),
        *("view", "_reshape_alias", "_unsafe_view", "view_as_real", "resize_", "result_type"),
        *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "is_nonzero"),
        *("resolve_conj", "resolve_neg", "requires_grad_", "_has_compatible_shallow_copy_type"),
    )
)


@cache
def has_kernel(name: str) -> bool:
    """Whether an operation of torch is a kernel, or is made of others."""
    packet = getattr(torch.ops.aten, name, None)
    overloads = [] if packet is None else packet.overloads()
    known, ask = torch._C._dispatch_has_kernel, torch._C._dispatch_has_kernel_for_dispatch_key
    names = (f"aten::{name}.{o}" if o != "default" else f"aten::{name}" for o in overloads)
    return any(known(full) and ask(full, "CPU") for full in names)


def counted(event: Any, found: Counter) -> int:
    """Adds the kernels that an event of the profiler stands for; how many there were."""
    space, _, name = event.name.rpartition("::")
    if space == "aten" and name in FREE:
        return 0
    if space == "aten" and has_kernel(name):
        found[name] += 1
        return 1
    inside = sum(counted(child, found) for child in event.cpu_children)
    if space == "aten" and inside == 0 and not event.cpu_children:
        found[name] += 1
        return 1
    return inside


@contextlib.contextmanager
def triton_launches() -> Iterator[Callable[[], list[str]]]:
    """Names of the Triton kernels that are not run."""
    from triton.runtime.interpreter import GridExecutor

    names: list[str] = []
    run = GridExecutor.__call__
    GridExecutor.__call__ = lambda self, *_, **__: names.append(self.fn.__name__)
    try:
        yield lambda: [names.pop() for _ in range(len(names))]
    finally:
        GridExecutor.__call__ = run


@contextlib.contextmanager
def cuda_launches() -> Iterator[Callable[[], list[str]]]:
    """Names of the CUDA library's kernels that are not run."""
    from emulated import library

    os.environ["MCR_EMULATED_NOTHING"] = "1"
    library.launches()
    try:
        yield library.launches
    finally:
        del os.environ["MCR_EMULATED_NOTHING"]


@contextlib.contextmanager
def no_launches() -> Iterator[Callable[[], list[str]]]:
    """Of torch alone."""
    yield lambda: []


LAUNCHES = {"triton": triton_launches, "cuda": cuda_launches, None: no_launches}


def launches_of(run: Callable[[], Any], backend: str | None) -> Counter:
    """How often a call starts what, torch's kernels by their names after `aten::`."""
    with LAUNCHES[backend]() as kernels:
        run()  # what is done once
        kernels()
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
            run()
        found = Counter(kernels())
    of_torch: Counter = Counter()
    for event in profiler.events():
        if event.cpu_parent is None:
            counted(event, of_torch)
    return found + Counter({f"aten::{name}": count for name, count in of_torch.items()})


def step_of(run: Callable[[], torch.Tensor], leaves: list, backend: str | None) -> dict:
    """The launches of a forward without a gradient, of one with it, and of its backward."""

    def without() -> None:
        with torch.no_grad():
            run()

    def backward() -> Counter:
        values = [run() for _ in range(2)]  # one for what is done once
        return launches_of(
            lambda: torch.autograd.grad(values.pop().sum(), leaves, allow_unused=True), backend
        )

    return {
        "forward": launches_of(without, backend),
        "forward_with_gradient": launches_of(run, backend),
        "backward": backward(),
    }


def rows(backend: str | None) -> Iterator[dict]:
    """The launches of every op and of `MCRLoss`, small and large; None: plain torch's."""
    from bench.inputs import make_inputs
    from bench.registry import benchmarks

    argument = "cpu" if backend == "cuda" else backend  # where the emulator stands in
    for op, cases in CASES.items():
        benchmark = benchmarks()[op]
        for size, changes in cases.items():
            case = benchmark.cases[0].__class__(op, **changes)
            inputs = make_inputs(case)
            ours = sys.modules[f"bench.bench_{op}"].ours
            run = partial(ours, inputs, argument)
            if backend is None:
                run = partial(benchmark.provider("eager").run, inputs)
            found = step_of(run, inputs.leaves(), backend)
            yield {"op": op, "case": case.name, "size": size, "backend": backend or "eager"} | found


DEFAULT = {"D": 512, "C": 6, "K": 32}
CASES: dict[str, dict[str, dict]] = {
    "mcr_loss": {
        "small": {"N": 32, **DEFAULT, "donors": "drawn", "start": "latents"},
        "large": {"N": 512, "D": 512, "C": 174, "K": 32, "donors": "drawn", "start": "latents"},
    },
    "permuted_divergence": {
        "small": {"N": 32, "C": 6, "K": 32, "donors": "uniform", "start": "contributions"},
        "large": {"N": 4096, "C": 174, "K": 32, "donors": "uniform", "start": "contributions"},
    },
    "row_divergence": {"small": {"N": 32, "C": 6, "K": 8}, "large": {"N": 512, "C": 174, "K": 8}},
    "nt_xent": {"small": {"N": 32, "D": 512, "C": 6}, "large": {"N": 2048, "D": 64, "C": 100}},
    "sup_con": {"small": {"N": 32, "D": 512, "C": 6}, "large": {"N": 2048, "D": 64, "C": 100}},
    "reconstruction_loss": {"small": {"N": 32, "D": 512}, "large": {"N": 4096, "D": 512}},
}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    asked = sys.argv[1]
    if asked == "cuda":
        from emulated import library

        library.load()
    for row in rows(None if asked == "eager" else asked):
        print(json.dumps(row), flush=True)
