"""Which memory a Triton kernel may read back before all of its threads have written it.

A program's threads are many: what one has stored, another one may load, for a store and a load of
one tile can have layouts of their own. Only a barrier between the two orders them. The interpreter
runs one statement after the other and cannot see it; the compiler's intermediate code can.
"""

import re
from collections import ChainMap
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count

VALUE = re.compile(r"%[\w.$-]+")
ARGUMENT = re.compile(r"(%[\w.$-]+): ")
DEFINED = re.compile(r"(%[\w.$-]+)(?::\d+)? = ")
BARRIER = re.compile(r"\b(gpu|ttg)\.barrier\b")
LOOP = re.compile(r"\bscf\.(?:for|while)\b(?: (%[\w.$-]+) =)?")
LOAD = re.compile(r"\b(?:tt\.load|ttg\.async_copy_global_to_local) (%[\w.$-]+)")
STORE = re.compile(r"\btt\.store (%[\w.$-]+)")


@dataclass
class Statement:
    """A line of code and the regions in its braces."""

    line: str
    regions: list[list["Statement"]] = field(default_factory=list)


def _parse(lines: Iterator[str]) -> tuple[list[Statement], bool]:
    """All up to the brace that closes, and whether another region of the same line follows."""
    found: list[Statement] = []
    for raw in lines:
        line = re.sub(r" loc\([^ ]*\)$", "", raw).strip()
        if line.startswith("}"):
            return found, line.endswith("{")
        found.append(Statement(line))
        more = line.endswith("{")
        while more:
            region, more = _parse(lines)
            found[-1].regions.append(region)
    return found, False


def _introduced(line: str) -> tuple[str | None, list[str]]:
    """The number of a loop's turn, and the other names that a line has for its regions."""
    if "tt.func" in line or line.startswith("^"):
        return None, ARGUMENT.findall(line)
    if loop := LOOP.search(line):
        return loop[1], re.findall(r"[(,] ?(%[\w.$-]+) = ", line)
    return None, []


class Values:
    """What each value is made of. Regions beside each other may have the same names."""

    def __init__(self, code: list[Statement]):
        self._numbers = count()
        self._made_of: dict[str, set[str]] = {}
        self.arguments: set[str] = set()  # those that are pointers
        self._name(code, ChainMap(), None)

    def _name(self, code: list[Statement], scope: ChainMap, results: str | None) -> None:
        """Names every value anew, and notes what it is made of."""
        for each in code:
            line, inner = each.line, scope.new_child()
            number, carried = _introduced(line)
            made = DEFINED.match(line)
            operands = set(VALUE.findall(line.partition("->")[0])) - {number, *carried}
            made_of = {scope.get(name, name) for name in operands - {made[1] if made else None}}
            place = scope if line.startswith("^") else inner
            place.update({name: f"{name}.{next(self._numbers)}" for name in (number, *carried)})
            if made:
                scope[made[1]] = f"{made[1]}.{next(self._numbers)}"
            result = scope[made[1]] if made else None
            each.line = VALUE.sub(lambda m, at=inner: at.get(m[0], m[0]), line)
            if "tt.func" in line:
                pointers = re.findall(r"(%[\w.$-]+): !tt\.ptr", line)
                self.arguments |= {inner[name] for name in pointers}
            for name, first in re.findall(r"(%[\w.$-]+) = (%[\w.$-]+)", each.line):
                self._note(name, {first})
            if LOOP.search(line):  # a turn begins with what the one before has handed on
                for name in carried if result else ():
                    self._note(inner[name], {result})
            elif result and not LOAD.search(line):
                self._note(result, made_of)
            if results and "scf.yield" in line:
                self._note(results, made_of)
            for region in each.regions:
                self._name(region, inner.new_child(), result)

    def _note(self, name: str, made_of: set[str]) -> None:
        self._made_of.setdefault(name, set()).update(made_of)

    def behind(self, name: str) -> set[str]:
        """All that a value is made of, but through memory."""
        seen, left = {name}, [name]
        while left:
            new = self._made_of.get(left.pop(), set()) - seen
            seen |= new
            left += new
        return seen

    def memory(self, pointer: str) -> set[str]:
        """The arguments that it points into."""
        return {
            name.lstrip("%").rpartition(".")[0] for name in self.behind(pointer) & self.arguments
        }


def unordered(ir: str) -> set[str]:
    """The arguments that are loaded from after a store into them, with no barrier between.

    Turns of a loop whose number is part of an address are taken to have addresses of their own.
    """
    code, _ = _parse(iter(ir.splitlines()))
    values, found = Values(code), set()

    def walk(region: list[Statement], stored: set[str]) -> set[str]:
        """The pointers that have been stored to since the last barrier."""
        for each in region:
            if BARRIER.search(each.line):
                stored = set()
            if load := LOAD.search(each.line):
                before = set().union(*map(values.memory, stored))
                found.update(values.memory(load[1]) & before)
            if store := STORE.search(each.line):
                stored = stored | {store[1]}
            if "scf.if" in each.line:
                ends = [walk(inner, stored) for inner in each.regions]
                stored = set().union(*ends, stored if len(ends) == 1 else set())
            elif loop := LOOP.search(each.line):
                for inner in each.regions:
                    once = walk(inner, stored)
                    again = {p for p in once if loop[1] not in values.behind(p)}
                    stored = stored | once | walk(inner, again)
            else:
                for inner in each.regions:
                    stored = walk(inner, stored)
        return stored

    walk(code, set())
    return found
