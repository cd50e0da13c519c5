"""The shape of the tree: a stem has all its files, arrows point down, the hot path never waits."""

import ast
import re
from pathlib import Path

import pytest
from losses import LOSSES
from programs import ROOT, run_python

import mcr_fast
from mcr_fast.ops.registry import INNER, OPS

PACKAGE = ROOT / "mcr_fast"

STEM_FILES = (
    "mcr_fast/ops/{op}.py",
    "mcr_fast/reference/{op}.py",
    "docs/math/{op}.md",
    "docs/cost/{op}.md",
)
# An op that is made of another one is measured with that, and has a test of its own.
OWN_FILES = ("bench/bench_{op}.py", "tests/suite/cases/{op}.py")

BLOCKS = {"contrastive_blocks"}  # three ops, of the contrastive losses over several processes

# A unit imports from lower layers and from itself only.
LAYER = {
    "_version": 0,
    "_process": 0,
    "_numbers": 0,
    "_torchscript": 0,
    "_names": 0,
    "_cuda_code": 0,
    "_released": 1,
    "_schedule": 1,
    "_libraries": 1,
    "_checkpointing": 0,
    "_wrapping": 0,
    "game": 1,
    "pairing": 1,
    "reference": 2,
    "kernels": 2,
    "_fixed": 0,
    "sampling": 2,
    "ops": 3,
    "_columns": 4,
    "_checks": 4,
    "env": 4,
    "distributed": 5,
    "fusion": 5,
    "_watch": 5,
    "_task": 6,
    "functional": 6,
    "mipd": 6,
    "_ceb": 7,
    "_contrastive": 7,
    "_options": 8,
    "_terms": 9,
    "modules": 10,
    "monitor": 12,
    "_unimodal": 10,
    "objective": 11,
    "recipes": 12,
    "tune": 12,
}


def package_files() -> list[Path]:
    files = sorted(PACKAGE.rglob("*.py")) + sorted((ROOT / "kernels").rglob("*.py"))
    return [path for path in files if path != PACKAGE / "__init__.py"]


def unit_of(path: Path) -> str:
    """The layer's name: a module of mcr_fast, or one of its subpackages."""
    relative = path.relative_to(ROOT)
    return "kernels" if relative.parts[0] == "kernels" else Path(relative.parts[1]).stem


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def units_imported(nodes) -> set[str]:
    """Units of mcr_fast that import statements among `nodes` name; "" is the package itself."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            module = node.module or ""
            names = [f"{module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "mcr_fast":
                found.add(parts[1] if len(parts) > 1 else "")
    return found


def relative_id(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("op", OPS)
def test_stem_has_all_its_files(op):
    names = STEM_FILES if OPS[op].made_of else STEM_FILES + OWN_FILES
    missing = [name.format(op=op) for name in names if not (ROOT / name.format(op=op)).exists()]
    assert not missing, f"{op} lacks {missing}; CONTRIBUTING.md lists the files of an op"


@pytest.mark.parametrize("op", OPS)
def test_op_is_built_and_public(op):
    launchers = "".join(path.read_text() for path in (ROOT / "csrc").glob("*/cpu/*.cpp"))
    assert f'm.impl("{op}_fwd"' in launchers
    assert callable(getattr(mcr_fast.functional, op))
    assert op in mcr_fast.functional.__all__
    assert op in LOSSES, "tests/losses.py has what the tests of transforms and tracers call"


@pytest.mark.parametrize(
    ("folder", "suffix"),
    [("mcr_fast/ops", ".py"), ("mcr_fast/reference", ".py"), ("docs/math", ".md")],
)
def test_no_file_without_its_stem(folder, suffix):
    stems = {path.stem for path in (ROOT / folder).glob(f"*{suffix}") if path.stem[0] != "_"}
    assert stems - {"README", "index", "registry", *BLOCKS} <= {*OPS, *INNER}


@pytest.mark.parametrize("op", OPS)
def test_one_reference(op):
    definition = re.compile(rf"^\s*def {op}_reference\b", re.MULTILINE)
    places = [
        relative_id(path)
        for folder in ("mcr_fast", "kernels", "tests", "bench", "examples")
        for path in (ROOT / folder).rglob("*.py")
        if definition.search(path.read_text(encoding="utf-8"))
    ]
    assert places == [f"mcr_fast/reference/{op}.py"]


@pytest.mark.parametrize("path", package_files(), ids=relative_id)
def test_imports_point_down(path):
    unit = unit_of(path)
    assert unit in LAYER, f"{unit} has no layer: add it to LAYER and to docs/architecture.md"
    for name in units_imported(parse(path).body):
        assert name in LAYER, f"imports {name or 'the package itself'}, which has no layer"
        assert name == unit or LAYER[name] < LAYER[unit], f"{unit} must not import {name}"


def floor_of(source: Path) -> tuple[int, str]:
    """How high a C++ file stands, and its op: core, divergence, rows, what runs them."""
    room, *rest = source.relative_to(ROOT / "csrc").parts
    if room in ("core", "divergence"):
        return ("core", "divergence").index(room), ""
    if room in INNER:
        return 6, ""  # made of other ops
    if not rest:
        return (4 if source.stem == "dispatch" else 6), ""  # the tables; what names every op
    if room in ("cpu", "cuda"):
        return 3, ""  # what the ops' launchers and kernels share
    if rest == ["cpu", "kernels.h"]:
        return 3, room
    return (5 if rest[0] in ("cpu", "cuda") else 2), room


SOURCES = sorted(path for path in (ROOT / "csrc").rglob("*.*"))


@pytest.mark.parametrize("path", SOURCES, ids=relative_id)
def test_includes_point_down(path):
    floor, op = floor_of(path)
    for name in re.findall(r'#include "([^"]+)"', path.read_text()):
        below, other = floor_of(ROOT / "csrc" / name)
        assert below <= floor, f"{name} stands above"
        assert not other or other == op or floor in (4, 6), f"{name} is of another op"


@pytest.mark.parametrize("path", sorted((PACKAGE / "reference").glob("*.py")), ids=relative_id)
def test_reference_stands_on_the_ground(path):
    """On the words of the specification alone: it is what everything else is compared with."""
    assert units_imported(ast.walk(parse(path))) <= {"reference", "_names", "game", "pairing"}


def test_import_is_light():
    # The compiler takes as long to import as torch itself, and imports triton where there is one.
    code = "import torch, sys; heavy = {'triton', 'mcr_fast.kernels', 'torch._dynamo'}; "
    code += "[sys.modules.pop(name, None) for name in heavy]; "
    code += "import mcr_fast; print(*heavy & set(sys.modules))"
    assert run_python("-c", code).stdout == "\n"


SYNCING_METHODS = {"item", "tolist", "cpu", "numpy", "nonzero"}
REDUCTIONS_TO_BOOL = {"any", "all", "equal", "allclose"}


def tensor_truth(node: ast.AST) -> bool:
    """`x.any()`, `torch.equal(x, y)`: what becomes a bool on the host when it is tested."""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in REDUCTIONS_TO_BOOL
    )


def host_syncs(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        tested: list[ast.AST] = []
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and node.func.attr in SYNCING_METHODS:
                found.append(f"line {node.lineno}: .{node.func.attr}()")
            if isinstance(node.func, ast.Name) and node.func.id in ("bool", "float", "int"):
                tested = list(node.args)
        elif isinstance(node, ast.If | ast.IfExp | ast.While | ast.Assert):
            tested = [node.test]
        elif isinstance(node, ast.BoolOp):
            tested = list(node.values)
        elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
            tested = [node.operand]
        found += [f"line {n.lineno}: truth of a tensor" for n in tested if tensor_truth(n)]
    return found


# Everything that runs in a step; _checks waits on CPU tensors, and on others when asked to.
OFF_IT = ("env", "_libraries", "_checks")
HOT_PATH = [path for path in package_files() if unit_of(path) not in OFF_IT]


@pytest.mark.parametrize("path", HOT_PATH, ids=relative_id)
def test_hot_path_has_no_host_sync(path):
    assert host_syncs(parse(path)) == []


@pytest.mark.parametrize(
    "code",
    [
        "x.item()",
        "x.tolist()",
        "bool(x.any())",
        "if x.any(): pass",
        "y = a and not torch.equal(a, b)",
    ],
)
def test_host_syncs_are_found(code):
    assert host_syncs(ast.parse(code))


@pytest.mark.parametrize("path", package_files(), ids=relative_id)
def test_environment_is_read_in_one_place(path):
    reads = [
        node.lineno
        for node in ast.walk(parse(path))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
    ]
    assert not reads or path == PACKAGE / "_libraries.py", f"lines {reads}"


def test_all_is_sorted_and_true():
    assert list(mcr_fast.__all__) == sorted(mcr_fast.__all__)
    for name in mcr_fast.__all__:
        assert hasattr(mcr_fast, name), name


def test_one_version():
    assert mcr_fast.__version__ == mcr_fast._version.__version__
    assert f"version: {mcr_fast.__version__}\n" in (ROOT / "CITATION.cff").read_text()
