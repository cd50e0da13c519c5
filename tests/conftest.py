"""Settings that all tests share."""

import own_process
import pytest
import torch
from suite import processes


def pytest_addoption(parser):
    parser.addoption(
        "--wheel", help="the wheel that test_wheel_contents.py reads; else it builds one"
    )
    parser.addoption("--slow", action="store_true", help="also run what takes minutes")
    processes.add_options(parser)


def pytest_configure(config):
    processes.configure(config)


def pytest_collection_modifyitems(config, items):
    if config.option.slow:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    if slow:
        config.hook.pytest_deselected(items=slow)
        left = set(slow)
        items[:] = [item for item in items if item not in left]


def pytest_collection_finish(session):
    if session.config.option.collectonly or hasattr(session.config, "workerinput"):  # pytest-xdist
        return
    for item in session.items:
        skipped = any(all(mark.args) for mark in item.iter_markers("skipif"))
        for value in item.callspec.params.values() if hasattr(item, "callspec") else ():
            if isinstance(value, own_process.OwnProcess) and not skipped:
                value.start()


def pytest_sessionfinish():
    own_process.stop()


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)
