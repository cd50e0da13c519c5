"""The pages as they lie in docs/, the site's list of them, and the site."""

import ast
import builtins
import functools
import importlib.util
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from programs import ROOT

DOCS = ROOT / "docs"
NEEDED = ("mkdocs", "material", "mkdocstrings", "ziamath", "markdown_it")  # the `docs` group
LISTED = re.compile(r"(\S+\.md)$", re.MULTILINE)  # in mkdocs.yml
# ```python is run; ```py shows a part of something.
RUN = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def pages() -> list[str]:
    return sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def listed() -> list[str]:
    return LISTED.findall((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def described() -> set[str]:
    """The names that a page of the API has."""
    found: list[str] = []
    for path in DOCS.glob("api/*.md"):
        found += re.findall(r"^::: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(found) == len(set(found)), "a name has one place"
    return set(found)


def program(page: str) -> str:
    """The blocks of a page that run, one after the other."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return "\n".join(block[1] for block in RUN.finditer(text))


def unbound(code: str) -> set[str]:
    """Names that a program reads and binds nowhere."""
    nodes = list(ast.walk(ast.parse(code)))
    names = [x for x in nodes if isinstance(x, ast.Name)]
    bound = {x.id for x in names if isinstance(x.ctx, ast.Store)} | {*vars(builtins)}
    bound |= {x.name for x in nodes if isinstance(x, (ast.FunctionDef, ast.ClassDef))}
    bound |= {x.arg for x in nodes if isinstance(x, ast.arg)}
    for x in nodes:
        if isinstance(x, (ast.Import, ast.ImportFrom)):
            bound |= {(alias.asname or alias.name).split(".")[0] for alias in x.names}
    return {x.id for x in names} - bound


def missing_modules(code: str) -> set[str]:
    """Packages that a program imports and that are not installed."""
    found: set[str] = set()
    for x in ast.walk(ast.parse(code)):
        if isinstance(x, ast.Import):
            found |= {alias.name.split(".")[0] for alias in x.names}
        elif isinstance(x, ast.ImportFrom) and x.module:
            found.add(x.module.split(".")[0])
    return {name for name in found if importlib.util.find_spec(name) is None}


def build(folder: Path, out: Path) -> subprocess.CompletedProcess[str]:
    """`make docs` of a tree."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    """It lives as long as the tests do."""
    return tempfile.TemporaryDirectory()


@functools.cache
def _once() -> subprocess.CompletedProcess[str]:
    return build(ROOT, Path(_folder().name) / "site")


def built_site() -> Path:
    """The site of this tree, built once for all tests."""
    assert _once().returncode == 0, _once().stderr[-4000:]
    return Path(_folder().name) / "site"
