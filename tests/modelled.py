"""What rows of the benchmarks launch on a GPU, in full size, without one.

For `python -m bench model`, and to fill Triton's cache before a GPU is timed.

A line of JSON for each row: how often a training step starts which kernel. Triton's kernels are
compiled as their launches ask for it, into the folder named: `python tests/modelled.py triton
FOLDER`; `cuda` asks the emulator, which runs nothing; `warm AT/COUNT` only compiles a part of all
rows, into Triton's own cache. Products of torch are counted and not run.
"""

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import launches  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm")
Asked = dict[str, dict[Any, Any]]  # name of a kernel -> as launches asked for it, the last one last


def product(name: str, names: list[str]) -> Callable[..., torch.Tensor]:
    """Notes that it is called, and gives memory of the product's shape."""

    def stand_in(*args: torch.Tensor, out=None, out_dtype=None, **_: Any) -> torch.Tensor:
        names.append(f"aten::{name}")
        *_, a, b = args
        shape = (*a.shape[:-1], b.shape[-1])
        return zeros(shape, dtype=out_dtype or a.dtype) if out is None else out

    return stand_in


def zeros(*size: Any, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    """In the place of `torch.empty`, for what a launcher indexes with; no launch of torch's."""
    shape = torch.Size(size[0] if size and not isinstance(size[0], int) else size)
    kind = dtype or torch.get_default_dtype()
    flat = torch.from_numpy(np.zeros(max(1, shape.numel()) * kind.itemsize, np.uint8))
    return flat.view(kind)[: shape.numel()].view(shape)


def zeros_like(x: torch.Tensor, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    return zeros(x.shape, dtype=dtype or x.dtype)


FLOAT = torch.Tensor.float


def converted(x: torch.Tensor) -> torch.Tensor:
    return zeros(x.shape) if x.dtype.itemsize == 2 else FLOAT(x)


@contextlib.contextmanager
def launched(asked: Asked) -> Iterator[Callable[[], list[str]]]:
    """Names of Triton's kernels and torch's products, none of which run."""
    from launched import driver
    from triton.runtime.jit import JITFunction

    names: list[str] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **arguments: Any) -> None:
        names.append(self.fn.__name__)
        notes = driver.Notes()
        notes.take(self, dict(zip(self.arg_names, args, strict=False)) | arguments, "")
        (this,) = notes.of(self.fn.__name__)
        known = asked.setdefault(self.fn.__name__, {})
        known.pop(this.features, None)
        known[this.features] = this

    with contextlib.ExitStack() as stack:
        stack.enter_context(driver.noted(driver.Notes(), ""))
        stack.enter_context(mock.patch.object(JITFunction, "run", run))
        stack.enter_context(mock.patch.object(torch, "empty", zeros))
        stack.enter_context(mock.patch.object(torch, "empty_like", zeros_like))
        # a CPU's product of 16-bit matrices converts them, a GPU's does not
        stack.enter_context(mock.patch.object(torch.Tensor, "float", converted))
        for name in PRODUCTS:
            stack.enter_context(mock.patch.object(torch, name, product(name, names)))
        yield lambda: [names.pop(0) for _ in range(len(names))]


def compiled(asked: Asked, folder: Path) -> dict[str, dict]:
    """For each kernel its constants, its warps and the file with its code for sm_90."""
    found = {}
    for name, known in asked.items():
        *_, each = known.values()
        given = each.arguments.items()
        constants = {key: value for key, value in given if re.fullmatch("BLOCK_[A-Z]+", key)}
        kernel = each.compile(90)
        cubin = kernel.asm["cubin"]
        path = folder / f"{name}-{hash(cubin) & 0xFFFFFFFF:08x}.cubin"
        path.write_bytes(cubin)
        found[name] = {**constants, "WARPS": each.arguments["num_warps"], "file": str(path)}
    return found


def narrow(case: Any) -> Any:
    """Many embeddings are as many launches whatever their width."""
    return replace(case, D=32) if case.op in ("nt_xent", "sup_con") and case.L > 4096 else case


def warm(part: str) -> None:
    """Compile what some of all rows launch."""
    import triton

    os.environ.setdefault("TRITON_CACHE_DIR", triton.knobs.cache.dir)
    from launched import driver

    driver.load()
    from bench.gpu.measure import ALL_ROWS
    from bench.inputs import make_inputs
    from bench.registry import benchmarks

    at, count = map(int, part.split("/"))
    for row in ALL_ROWS[at::count]:
        asked: Asked = {}
        inputs = make_inputs(narrow(row.case))
        ours = benchmarks()[row.case.op].provider("ours")
        with launched(asked), launches.unread(), contextlib.suppress(RuntimeError, ValueError):
            ours.run(inputs, backend="triton").backward()
        for known in asked.values():
            for each in known.values():
                each.compile(90)


def main(backend: str, folder: str, *labels: str) -> None:
    """Print a line of JSON for each row."""
    if backend == "warm":
        warm(folder)
        return
    if backend == "triton":
        from launched import driver

        driver.load()
    else:
        from emulated import library

        library.load()
    from bench.gpu.rows import LIKE, call_of
    from bench.inputs import make_inputs
    from bench.model.rows import ROWS
    from bench.registry import benchmarks
    from mcr_fast.ops.registry import OPS

    def refused(row: Any, backend: str) -> bool:
        """Whether the backend does not take the row, whatever its stand-in here would."""
        op = OPS[LIKE.get(row.case.op, row.case.op)]
        return backend not in op.backends or op.refusal(backend, call_of(row.case)) is not None

    argument = {"triton": "triton", "cuda": "cpu"}[backend]
    asked: Asked = {}
    if backend == "triton":
        launches.LAUNCHES["triton"] = partial(launched, asked)
    for row in (row for row in ROWS if not labels or row.label in labels):
        if refused(row, backend):
            continue
        asked.clear()
        inputs = make_inputs(narrow(row.case))
        run = partial(benchmarks()[row.case.op].provider("ours").run, inputs, backend=argument)
        line = {"label": row.label, "backend": backend}
        try:
            step = launches.step_of(run, inputs.leaves(), backend)
        except (RuntimeError, ValueError) as error:  # what a backend does not take
            print(json.dumps({**line, "refused": str(error)}), flush=True)
            continue
        counts = {part: step[part] for part in ("forward_with_gradient", "backward")}
        kernels = compiled(asked, Path(folder))
        print(json.dumps({**line, **counts, "kernels": kernels}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
