"""Runs tests/emulated in processes of their own, where a host compiler stands in for the GPU."""

import platform
import shutil
from pathlib import Path

import pytest
from own_process import OwnProcess

FILES = sorted(Path(__file__).with_name("emulated").glob("test_*.py"))

pytestmark = [
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="float16 is emulated with F16C"),
]


@pytest.mark.parametrize(
    "file", [OwnProcess(path, MCR_FAST_EMULATED="1") for path in FILES], ids=lambda f: f.path.stem
)
def test_emulated(file):
    file.check()
