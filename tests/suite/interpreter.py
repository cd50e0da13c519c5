"""Triton's interpreter, without what it does again and again for every function and value.

It puts its own functions in the place of the language's when a kernel starts, and once more at each
call of a function inside, which finds nothing left to replace: half of the time of a kernel that
calls many. Here a module whose functions were called before in the same launch is left alone.
And it makes a table of all types to look one of them up, which is remembered here.
"""

from types import FunctionType
from typing import Any


def load() -> None:
    """From here on; once in a process."""
    from triton.runtime import interpreter  # doctests import every module, without Triton too

    launch, replace = interpreter.GridExecutor.__call__, interpreter._patch_lang
    replaced: set[int] = set()  # the modules of a launch, by their globals
    find = interpreter._get_np_dtype
    found: dict[str, Any] = {}  # numpy's types by the language's names

    def launched(executor, *args, **kwargs) -> None:
        replaced.clear()
        launch(executor, *args, **kwargs)

    def replace_once(fn: FunctionType) -> object:
        """The launch itself comes first, and is given what puts everything back at its end."""
        if id(fn.__globals__) in replaced:
            return None
        replaced.add(id(fn.__globals__))
        return replace(fn)

    def find_once(of: Any) -> Any:
        name = of.scalar.name  # a block has the type of its elements
        if name not in found:
            found[name] = find(of)
        return found[name]

    interpreter.GridExecutor.__call__ = launched
    interpreter._patch_lang = replace_once
    interpreter._get_np_dtype = find_once
