"""Settings that all tests share."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption(
        "--wheel", help="the wheel that test_wheel_contents.py reads; else it builds one"
    )


@pytest.fixture(autouse=True)
def _fixed_seed():
    torch.manual_seed(0)
