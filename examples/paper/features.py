"""Pickles of arrays, read without running what else a pickle may hold."""

import pickle
from pathlib import Path
from typing import Any

# What arrays of NumPy are pickled with, by its versions 1 and 2.
CORES = ("numpy.core", "numpy._core")
ALLOWED = {
    *((f"{core}.multiarray", "_reconstruct") for core in CORES),
    *((f"{core}.multiarray", "scalar") for core in CORES),
    *((f"{core}.numeric", "_frombuffer") for core in CORES),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
    ("builtins", "bytearray"),
}


class _Arrays(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in ALLOWED:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it has {module}.{name}, and only arrays of NumPy are let in")


def read_pickle(path: Path) -> Any:
    """What a pickle of dicts, lists, strings, numbers and NumPy's arrays holds.

    Raises:
        ValueError: no such pickle, or one that is cut short; it names the file.
    """
    try:
        with path.open("rb") as file:
            return _Arrays(file).load()
    except OSError:
        raise
    except Exception as error:  # bytes that are no pickle raise whatever they spell
        raise ValueError(f"{path}: no pickle of arrays that can be read ({error})") from error
