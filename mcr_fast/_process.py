"""What belongs to the process and not to one import of the package.

Notebooks and reloaders drop a package's modules and import it again. torch's dispatcher, a loaded
library and a warning that was given do not go with the modules: what is registered there is
registered by the first import, which later ones share. Hence edits to a registered fake or
derivative need a new process, as edits to the C++ do.
"""

from collections.abc import Callable
from typing import Any

import torch

# On torch's own object for our namespace, which stays while torch does.
_KEPT: dict[str, Any] = vars(torch.ops.mcr_fast).setdefault("_kept_by_package", {})


def kept(name: str, make: Callable[[], Any]) -> Any:
    """What `make` returned when it was first called under this name in the process."""
    if name not in _KEPT:
        _KEPT[name] = make()
    return _KEPT[name]


def first_time(name: str) -> bool:
    """Whether nothing in the process has asked this about the name before."""
    if name in _KEPT:
        return False
    _KEPT[name] = True
    return True
