"""A plugin of pytest (`-p bench.gpu.lost_device`): whoever loses the device ends the session.

After an error of a kernel nothing that a process does on a GPU succeeds. The test that met it has
failed; the next ones get a process of their own.
"""

from collections.abc import Generator
from typing import Any

import pytest


def lost() -> bool:
    """Whether the device has become unusable for this process."""
    import torch

    try:
        torch.zeros(1, device="cuda").add_(1)
        torch.cuda.synchronize()
    except (RuntimeError, AssertionError):
        return True
    return False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    report = yield
    if report.failed and lost():
        item.session.shouldstop = "the device is lost"
    return report
