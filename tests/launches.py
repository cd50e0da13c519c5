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
from unittest import mock

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
def registered(name: str, key: str) -> bool:
    """Whether some overload of an operation of torch has a kernel under a key of the dispatcher."""
    packet = getattr(torch.ops.aten, name, None)
    overloads = [] if packet is None else packet.overloads()
    known, ask = torch._C._dispatch_has_kernel, torch._C._dispatch_has_kernel_for_dispatch_key
    names = (f"aten::{name}.{o}" if o != "default" else f"aten::{name}" for o in overloads)
    return any(known(full) and ask(full, key) for full in names)


def counted(event: Any, found: Counter) -> int:
    """Adds the kernels that an event of the profiler stands for; how many there were."""
    space, _, name = event.name.rpartition("::")
    if space == "aten" and name in FREE:
        return 0
    if space == "aten" and registered(name, "CPU"):
        found[name] += 1
        return 1
    inside = sum(counted(child, found) for child in event.cpu_children)
    # such as copy_; `to` of the same dtype and the like have no kernel under any key
    itself = not event.cpu_children and registered(name, "CompositeExplicitAutograd")
    if space == "aten" and itself:
        found[name] += 1
        return 1
    return inside


@contextlib.contextmanager
def triton_launches() -> Iterator[Callable[[], list[str]]]:
    """Names of the Triton kernels that are not run."""
    from triton.runtime.interpreter import GridExecutor

    names: list[str] = []

    def note(self: Any, *_: Any, **__: Any) -> None:
        names.append(self.fn.__name__)

    with mock.patch.object(GridExecutor, "__call__", note):
        yield lambda: [names.pop() for _ in range(len(names))]


@contextlib.contextmanager
def cuda_launches() -> Iterator[Callable[[], list[str]]]:
    """Names of the CUDA library's kernels that are not run."""
    from emulated import library

    os.environ["MCR_EMULATED_NOTHING"] = "1"
    try:
        yield library.launches
    finally:
        del os.environ["MCR_EMULATED_NOTHING"]


@contextlib.contextmanager
def no_launches() -> Iterator[Callable[[], list[str]]]:
    """Of torch alone."""
    yield lambda: []


LAUNCHES = {"triton": triton_launches, "cuda": cuda_launches, "eager": no_launches}


@contextlib.contextmanager
def unread() -> Iterator[None]:
    """Checks read no values, as for tensors of a GPU."""
    modules = [m for name, m in sys.modules.items() if name.startswith("mcr_fast._checks")]
    with contextlib.ExitStack() as stack:
        for module in modules:
            if hasattr(module, "may_read"):
                stack.enter_context(mock.patch.object(module, "may_read", return_value=False))
        yield


@contextlib.contextmanager
def counting(backend: str) -> Iterator[Callable[[Callable[[], Any]], Counter]]:
    """Gives a function that says how often a call starts what, torch's kernels as `aten::name`.

    None of the backend's kernels runs as long as this lasts: what they write stays unwritten.
    """

    def count(run: Callable[[], Any]) -> Counter:
        kernels()  # forgets those before
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
            run()
        found, of_torch = Counter(kernels()), Counter()
        for event in profiler.events():
            if event.cpu_parent is None:
                counted(event, of_torch)
        return found + Counter({f"aten::{name}": count for name, count in of_torch.items()})

    with LAUNCHES[backend]() as kernels, unread():
        yield count


def step_of(run: Callable[[], torch.Tensor], leaves: list, backend: str) -> dict:
    """The launches of a forward without a gradient, of one with it, and of its backward.

    The gradient that comes from above is there already.
    """

    def forward() -> None:
        with torch.no_grad():
            run()

    with counting(backend) as count:
        values = [run(), run()]
        above = torch.ones_like(values[0])

        def backward() -> None:
            torch.autograd.grad(values.pop(), leaves, above, allow_unused=True)

        for each in (forward, backward):  # what is done once, and is not counted
            each()
        return {
            "forward": count(forward),
            "forward_with_gradient": count(run),
            "backward": count(backward),
        }


def refusal(backend: str, case: Any) -> str | None:
    """Why a backend would not be given a case on a GPU; None if it would, or is none of ours."""
    from bench.gpu.rows import LIKE, call_of
    from mcr_fast.ops.registry import OPS

    row = OPS[LIKE.get(case.op, case.op)]
    if backend == "eager":
        return None
    if backend not in row.backends:
        return f"no {backend} kernel"
    limit = row.refusal(backend, call_of(case))
    return f"takes {limit[0]}, got {limit[1]}" if limit else None


def row(backend: str, op: str, size: str) -> dict:
    """The launches of an op of one of its sizes."""
    from bench.case import Case
    from bench.inputs import make_inputs
    from bench.registry import MEMORY_LIMIT, benchmarks

    case = Case(op, **CASES[op][size])
    provider = benchmarks()[op].provider("eager" if backend == "eager" else "ours")
    found = {"op": op, "case": case.name, "backend": backend}
    if reason := provider.too_large(case, MEMORY_LIMIT) or refusal(backend, case):
        return found | {"skipped": reason}
    argument = {"triton": "triton", "cuda": "cpu"}.get(backend)  # there the emulator stands in
    inputs = make_inputs(case)
    run = partial(provider.run, inputs, **({"backend": argument} if argument else {}))
    return found | step_of(run, inputs.leaves(), backend)


DEFAULT = {"D": 512, "K": 32, "donors": "drawn", "start": "latents"}
DIVERGENCE = {"K": 32, "donors": "uniform", "start": "contributions"}
CASES: dict[str, dict[str, dict]] = {
    "mcr_loss": {"small": {"N": 32, "C": 6, **DEFAULT}, "large": {"N": 512, "C": 174, **DEFAULT}},
    "permuted_divergence": {
        "small": {"N": 32, "C": 6, **DIVERGENCE},
        "large": {"N": 4096, "C": 174, **DIVERGENCE},
        "cyclic": {"N": 4096, "C": 174, **DIVERGENCE, "donors": "cyclic"},
    },
    "row_divergence": {"small": {"N": 32, "C": 6, "K": 8}, "large": {"N": 512, "C": 174, "K": 8}},
    "nt_xent": {
        "small": {"N": 32, "D": 512, "C": 6},
        "large": {"N": 2048, "D": 64, "C": 100},
        "panels": {"N": 16384, "D": 16, "C": 100},
    },
    "sup_con": {"small": {"N": 32, "D": 512, "C": 6}, "large": {"N": 2048, "D": 64, "C": 100}},
    "reconstruction_loss": {"small": {"N": 32, "D": 512}, "large": {"N": 4096, "D": 512}},
}


def main(backend: str, *ops: str) -> None:
    """Print a line of JSON for each row."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    kind = {"triton": "interpreted", "cuda": "emulated"}.get(backend)
    if kind:
        from suite import processes

        if reason := processes.missing(kind):
            sys.exit(reason)
    if backend == "cuda":
        from emulated import library

        library.load()
    for op in ops or CASES:
        for size in CASES[op]:
            print(json.dumps(row(backend, op, size)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
