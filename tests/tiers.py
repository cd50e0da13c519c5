"""Which of many like tests are in the quick tier: docs/testing.md."""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def sample(values: Iterable[Any], every: int) -> list[Any]:
    """Parameters for `parametrize`: the first one and every so many are quick, the others slow."""
    found = []
    for i, value in enumerate(values):
        marks = () if i % every == 0 else pytest.mark.slow
        is_row = isinstance(value, Sequence) and not isinstance(value, str)
        found.append(pytest.param(*(value if is_row else (value,)), marks=marks))
    return found
