"""Settings that all tests share."""

import pytest
import torch
from suite import processes

if processes.current() == "emulated":
    from emulated import library

    library.load()
elif processes.current() == "launched":
    from launched import driver

    driver.load()
elif processes.current() == "interpreted" and not processes.missing("interpreted"):
    from suite import interpreter

    interpreter.load()

collect_ignore = ["interpreted", "launched"] if processes.missing("interpreted") else []


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


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def one_thread():
    """For tensors so tiny that threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
