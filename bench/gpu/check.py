"""Checks cases on one device: `python -m bench.gpu.check RESULTS.jsonl --cases ...`.

A process of its own for some of them, because an error of a kernel ends all that a process can do
on a GPU. Writes one line of JSON as soon as a case is done, and exits with 1 if one was wrong.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

import torch

from bench.gpu.cases import CheckCase, check_cases
from bench.gpu.subjects import Results, Subject


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Memory that torch hands out holds NaN, or the largest integer."""
    utils = torch.utils.deterministic
    before = utils.fill_uninitialized_memory
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that have no deterministic form
        torch.use_deterministic_algorithms(True, warn_only=True)
        utils.fill_uninitialized_memory = True
        try:
            yield
        finally:
            utils.fill_uninitialized_memory = before
            torch.use_deterministic_algorithms(False)


def _same_bits(ours: Results, expected: Results) -> None:
    for k, (a, b) in enumerate(zip(ours, expected, strict=True)):
        same = (a == b) | (a.isnan() & b.isnan())
        assert same.all(), f"result {k}: off by up to {(a - b).abs().max()}"


def bound(subject: Subject, backend: str) -> None:
    """Within the bound of the float64 truth, in memory that held NaN before."""
    with poisoned_memory():
        subject.check(backend)


def not_finite(subject: Subject, backend: str) -> None:
    """NaN or infinity in gives no finite value, and no finite first gradient."""
    value, first, *_ = subject.run(backend, subject.upstream())
    assert not value.isfinite().all(), f"{value} from an input that is not finite"
    assert not first.isfinite().all(), "a finite gradient from an input that is not finite"


def repeat(subject: Subject, backend: str) -> None:
    """The same bits every run, whatever memory holds."""
    upstream = subject.upstream()
    expected = subject.run(backend, upstream)
    for _ in range(2):
        device = expected[0].device
        junk = [torch.full((1 << k,), torch.nan, device=device) for k in range(4, 23)]
        del junk
        _same_bits(subject.run(backend, upstream), expected)


def strided(subject: Subject, backend: str) -> None:
    """Inputs that are not contiguous."""
    subject.map(lambda t: torch.stack([t, t], -1)[..., 1]).check(backend)


def side_stream(subject: Subject, backend: str) -> None:
    """Kernels run on the current stream: inputs arrive late on it, and nothing waits for others."""
    upstream = subject.upstream()
    expected = subject.run(backend, upstream)
    late = subject.map(torch.zeros_like)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for target, source in zip(late.tensors(), subject.tensors(), strict=True):
            target.copy_(source)
        found = late.run(backend, upstream)
    torch.cuda.current_stream().wait_stream(stream)
    _same_bits(found, expected)


def graph(subject: Subject, backend: str) -> None:
    """Captured once and replayed on other values: the same bits as without a graph."""
    upstream = subject.upstream()
    expected = subject.run(backend, upstream)
    static = subject.map(torch.clone)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        static.run(backend, upstream)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    for tensor in static.tensors():
        if tensor.is_floating_point():
            tensor.fill_(0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty batch gives an empty graph
        with torch.cuda.graph(captured):
            found = static.run(backend, upstream)
    for target, source in zip(static.tensors(), subject.tensors(), strict=True):
        target.copy_(source)
    captured.replay()
    torch.cuda.synchronize()
    _same_bits(found, expected)


def no_sync(subject: Subject, backend: str) -> None:
    """Neither forward nor backward waits for the device."""
    upstream = subject.upstream()
    subject.run(backend, upstream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        subject.run(backend, upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def run_only(subject: Subject, backend: str) -> None:
    """Forward and backward, contiguous and not; somebody else watches."""
    subject.run(backend, subject.upstream())
    subject.map(lambda t: torch.stack([t, t], -1)[..., 1]).run(backend, subject.upstream())


Check = Callable[[Subject, str], None]
ANYWHERE: tuple[Check, ...] = (bound, repeat, strided)
ON_A_GPU: tuple[Check, ...] = (side_stream, graph, no_sync)


def checks_of(case: CheckCase, device: str) -> tuple[Check, ...]:
    """What a case is put through."""
    if case.poisoned:
        return (not_finite,)
    return ANYWHERE + (ON_A_GPU if device == "cuda" else ())


def verify(
    case: CheckCase, backend: str, device: str, checks: tuple[Check, ...] | None = None
) -> dict[str, str]:
    """One row: the checks done (all if none are named), and what the failed ones say."""
    start = perf_counter()
    failed, done = [], []
    subject = case.make().map(lambda t: t.to(device))
    for check in checks or checks_of(case, device):
        try:
            check(subject, backend)
            if device == "cuda":
                torch.cuda.synchronize()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{Path(where.filename).name}:{where.lineno}"
            failed.append(f"{check.__name__}: {type(error).__name__} at {place}: {error}"[:600])
            if lost_device(device):
                break
        done.append(check.__name__)
    return {
        "op": case.op,
        "backend": backend,
        "case": case.name,
        "checks": " ".join(done),
        "passed": "no" if failed else "yes",
        "detail": " | ".join(" ".join(text.split()) for text in failed),
        "seconds": f"{perf_counter() - start:.1f}",
    }


def lost_device(device: str) -> bool:
    """Whether an error has left the device unusable for this process."""
    if device != "cuda":
        return False
    try:
        torch.cuda.synchronize()
        torch.zeros(1, device=device).add_(1)
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("results", type=Path)
    parser.add_argument("--cases", nargs="+", required=True)
    parser.add_argument("--backend", default="triton")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--run-only", action="store_true", help="for compute-sanitizer")
    options = parser.parse_args()
    wrong = False
    for key in options.cases:
        checks = (run_only,) if options.run_only else None
        row = verify(check_cases()[key], options.backend, options.device, checks)
        wrong |= row["passed"] == "no"
        with options.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, **row}) + "\n")
        if wrong and lost_device(options.device):
            break
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
