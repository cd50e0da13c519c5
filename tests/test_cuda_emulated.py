"""Runs tests/emulated in a process of its own, where a host compiler stands in for the GPU."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
FILES = sorted((HERE / "emulated").glob("test_*.py"))

pytestmark = [
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="float16 is emulated with F16C"),
]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_emulated(path):
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", str(path)],
        cwd=HERE.parent,
        env=os.environ | {"MCR_FAST_EMULATED": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
