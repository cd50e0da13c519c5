"""Compiles a Triton kernel ahead of time, with no GPU, and reads what came out."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from bench.model.sass import Code, parse
from mcr_fast.kernels.config import Config

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
# bytes that one block can have
SHARED_LIMIT = {80: 163 * 1024, 90: 227 * 1024, 100: 227 * 1024}
TARGETS = (80, 90)  # of the tests that compile ahead of time


@dataclass
class Compiled:
    """A kernel's assembly and what it takes of the machine."""

    name: str
    target: int
    asm: dict[str, Any]
    shared: int  # bytes

    @cached_property
    def ptx(self) -> str:
        return self.asm["ptx"]

    @cached_property
    def usage(self) -> dict[str, int]:
        """REG, STACK, SHARED, LOCAL and more, of a thread or block."""
        text = self._tool("cuobjdump", "--dump-resource-usage")
        return {k: int(v) for k, v in re.findall(r"([A-Z]+)(?:\[\d\])?:(\d+)", text)}

    @property
    def registers(self) -> int:
        return self.usage["REG"]

    @property
    def spills(self) -> int:
        """Bytes of a thread's memory that stand for registers."""
        return self.usage["STACK"] + self.usage["LOCAL"]

    @cached_property
    def code(self) -> Code:
        """The machine's instructions."""
        (code,) = parse(self._tool("nvdisasm", "--print-code")).values()
        return code

    def loops(self) -> list[list[str]]:
        """The instructions of every loop."""
        return self.code.loops()

    def hot_path(self) -> int:
        """Instructions of the shortest way around a loop with a logarithm: no special case."""
        return len(self.code.way_around({"MUFU.LG2": 1}))

    def check(self, library: tuple[str, ...] = (), spills: int = 0) -> None:
        """What holds for every kernel: no spill, shared memory that fits, no library function.

        But for so many bytes, and for the functions in `library`, inlined or called.
        """
        where = f"{self.name} for sm_{self.target}"
        assert self.spills <= spills, f"{where}: {self.spills} bytes spilled"
        called = set(re.findall(r"__nv_[a-z0-9]+", self.ptx)) - set(library)
        assert not called, f"{where} calls libdevice: {called}"
        assert self.shared <= SHARED_LIMIT[self.target], f"{where}: {self.shared} bytes shared"

    def _tool(self, tool: str, *options: str) -> str:
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.asm["cubin"])
            file.flush()
            command = [str(TOOLS / tool), *options, file.name]
            return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def compile_kernel(
    fn: Any,
    signature: dict[str, str],
    constexprs: dict[str, Any],
    target: int,
    num_warps: int,
    num_stages: int = 1,
    aligned: tuple[str, ...] = (),
    max_registers: int | None = None,
) -> Compiled:
    """Compile for sm_<target>.

    Args:
        fn: a `triton.jit` function.
        signature: type of each argument that is no constexpr: "*fp32", "*i64", "i32", "fp32".
        constexprs: value of each constexpr argument; None for a pointer that is not given.
        target: one of SHARED_LIMIT.
        num_warps: as at the launch.
        num_stages: as at the launch.
        aligned: arguments that are multiples of 16, as the launcher finds out by itself.
        max_registers: as at the launch.
    """
    types = {name: "constexpr" if name in constexprs else signature[name] for name in fn.arg_names}
    positions = {name: (i,) for i, name in enumerate(fn.arg_names)}
    source = ASTSource(
        fn=fn,
        signature=types,
        constexprs={positions[name]: value for name, value in constexprs.items()},
        attrs={positions[name]: [["tt.divisibility", 16]] for name in aligned},
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", target, 32),
        options={"num_warps": num_warps, "num_stages": num_stages, "maxnreg": max_registers},
    )
    return Compiled(fn.__name__, target, compiled.asm, compiled.metadata.shared)


def build(
    fn: Any,
    config: Config,
    target: int,
    types: dict[str, str],
    pointer: str = "*fp32",
    aligned: tuple[str, ...] = (),
    library: tuple[str, ...] = (),
    **constexprs: Any,
) -> Compiled:
    """Compile with a table's configuration, and check.

    What `types` does not name is a `pointer` or an i32; pointers are aligned, and `aligned` too.
    """
    values = {"PRECISE": False, **config.blocks, **constexprs}
    values = {name: value for name, value in values.items() if name in fn.arg_names}
    others = {name: pointer if name.endswith("_ptr") else "i32" for name in fn.arg_names}
    aligned = tuple(
        name
        for name in fn.arg_names
        if (name.endswith("_ptr") or name in aligned) and name not in values
    )
    sizes = config.num_warps, config.num_stages
    compiled = compile_kernel(
        fn, others | types, values, target, *sizes, aligned, config.max_registers
    )
    compiled.check(library)
    return compiled
