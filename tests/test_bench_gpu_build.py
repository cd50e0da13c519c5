"""The part of `python -m bench gpu` that compiles: what it starts, and what it says; no GPU."""

import pytest
import torch

pytest.importorskip("tabulate")
pytest.importorskip("triton")

from bench import machine, results
from bench.__main__ import main
from bench.gpu import build
from bench.gpu.record import TARGETS


@pytest.fixture
def started(monkeypatch):
    """Programs and environments that are started; `answers` says what becomes of them in turn."""
    calls, answers = [], []

    def run_python(arguments, end, **environment):
        calls.append((arguments, environment))
        return answers.pop(0) if answers else ""

    monkeypatch.setattr(build, "run_python", run_python)
    monkeypatch.setattr(machine, "cores", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    calls.append(answers)
    return calls


def run(folder):
    code = main(["gpu", "--out", str(folder), "--only", "build"])
    return code, {row["what"]: row["detail"] for row in results.read(folder / TARGETS)}


def test_a_library_that_was_carried_counts(started, tmp_path):
    assert run(tmp_path) == (
        0,
        {"build: CUDA library": "there already", "build: Triton's kernels": "compiled"},
    )
    programs = [arguments for arguments, _ in started[1:]]
    assert programs[0] == ["-c", build.LOADED]
    assert [program[2] for program in programs[1:]] == ["0/3", "1/3", "2/3"]


def test_it_is_compiled_for_this_gpu(started, tmp_path):
    started[0].append("no library")
    code, said = run(tmp_path)
    assert (code, said["build: CUDA library"]) == (0, "compiled")
    arguments, environment = started[2]
    assert arguments[:3] == ["-m", "pip", "install"]
    assert environment["MCR_FAST_BUILD"] == "cuda"
    assert environment["TORCH_CUDA_ARCH_LIST"] == "9.0"


def test_without_a_compiler_triton_has_its_kernels(started, tmp_path):
    started[0].extend(["no library", "ended with 1: no nvcc"])
    code, said = run(tmp_path)
    assert (code, said["build: CUDA library"]) == (1, "ended with 1: no nvcc")
    assert said["build: Triton's kernels"] == "compiled"
    assert started[3][1] == {"MCR_FAST_BUILD": "none"}


def test_it_is_a_run_of_its_own(started, tmp_path, capsys):
    parts = ["--only", "build", "--only", "check"]
    assert main(["gpu", "--out", str(tmp_path), *parts]) == 2
    assert "a run of its own" in capsys.readouterr().err
