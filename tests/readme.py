"""The code of README.md, run as it stands."""

import re
from pathlib import Path
from typing import Any

README = Path(__file__).resolve().parent.parent / "README.md"


def python_blocks() -> list[str]:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)


def run_example() -> dict[str, Any]:
    """The names that the first example defines."""
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(python_blocks()[0], str(README), "exec"), names)
    return names
