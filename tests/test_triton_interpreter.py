"""Runs tests/interpreted in processes of their own, where Triton interprets its kernels."""

import importlib.util
from pathlib import Path

import pytest
from own_process import OwnProcess

FILES = sorted(Path(__file__).with_name("interpreted").glob("test_*.py"))


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.parametrize(
    "file", [OwnProcess(path, TRITON_INTERPRET="1") for path in FILES], ids=lambda f: f.path.stem
)
def test_interpreted(file):
    file.check()
