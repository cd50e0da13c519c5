"""Runs tests/launched in a process of its own, where kernels are compiled and never started."""

import importlib.util
from pathlib import Path

import pytest
from own_process import OwnProcess

FILES = sorted(Path(__file__).with_name("launched").glob("test_*.py"))


VARIABLES = {"MCR_FAST_LAUNCHED": "1", "TRITON_INTERPRET": "0"}


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(
    "file", [OwnProcess(path, **VARIABLES) for path in FILES], ids=lambda f: f.path.stem
)
def test_launchers_compile(file):
    file.check()
