"""Compiles the CUDA library's own sources for the host, against emulator.h.

What a host compiler cannot read is put into its words: launches, inline PTX, and the dispatch key,
which becomes the CPU's. Everything else is compiled as it stands.
"""

import hashlib
import re
import shutil
import subprocess
from pathlib import Path

import torch
from torch.utils import cpp_extension

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
# inline PTX, whose implementation it is, and what hooks.h keeps
REPLACED = {
    'asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));': (
        "y = approximate(::exp2(double(x)), x, 0x1p-22);"
    ),
    'asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));': "y = approximate_log2(x);",
    'asm volatile("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));': "y = approximate_log2(x);",
    'asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));': (
        "y = approximate(1 / double(flushed(x)), x, 0x1p-23);"
    ),
    'asm("sqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));': (
        "y = approximate(::sqrt(double(flushed(x))), x, 0x1p-23);"
    ),
    "extern __shared__ __align__(16) float pool[];": "alignas(16) static float pool[227 * 256];",
    "    band_masses(pr, stream);": (
        "    band_masses(pr, stream);\n"
        "    emulator::left.assign(pr.left, pr.left + 2 * pr.num_subsets * pr.rows);"
    ),
    "STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CUDA, m)": "STABLE_TORCH_LIBRARY_IMPL(mcr_fast, CPU, m)",
}
# Sizes from which on paths are taken: MCR_EMULATED_<NAME> in the environment is read in their place
# at every use, so that small problems take the paths of large ones.
KNOBS = (
    "kBusyThreads",  # threads that fill a GPU: with fewer several teams share a row's pairs
    "kSmallRows",  # up to which permuted_divergence makes a row's gradient in one go
    "kMaxOwnProduct",  # of a linear layer: more multiplications are the library's
    "kMaxPairBytes",  # of a chunk of bands
)
RENAMED = {
    "aoti_torch_device_type_cuda": "aoti_torch_device_type_cpu",
    "aoti_torch_create_device_guard": "emulated_create_device_guard",
    "aoti_torch_delete_device_guard": "emulated_delete_device_guard",
}
DEFINES = ("USE_CUDA", "MCR_ISA=cuda", "TORCH_TARGET_VERSION=0x020a000000000000ULL")
FLAGS = (
    "-std=c++17",
    "-O2",
    "-fPIC",
    "-fvisibility=hidden",
    "-mf16c",
    "-fno-strict-aliasing",
    "-U_FORTIFY_SOURCE",
)
TORCH = (f"-L{Path(torch.__file__).parent / 'lib'}", "-ltorch_cpu")
SANITIZE = ("-fsanitize=address", "-g1")
QUIET = ("-Wno-unknown-pragmas", "-Wno-attributes")


def closing(text: str, at: int) -> int:
    """Index of the bracket that closes the round one at `at`."""
    depth = 0
    for i in range(at, len(text)):
        depth += (text[i] == "(") - (text[i] == ")")
        if depth == 0:
            return i
    raise ValueError("a bracket is not closed")


def split_arguments(text: str) -> list[str]:
    """At the commas outside all brackets."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def statement(text: str, at: int) -> int:
    """Where the statement begins, past comments and conditions in front of it."""
    while True:
        at = re.compile(r"(?:\s|//[^\n]*\n|else\b)*").match(text, at).end()
        condition = re.compile(r"if\s*(?:constexpr\s*)?(?=\()").match(text, at)
        if not condition:
            return at
        at = closing(text, condition.end()) + 1


def translate_launches(text: str) -> str:
    """`kernel<<<blocks, threads, 0, stream>>>(arguments)` as a call of the emulator."""
    while "<<<" in text:
        at = text.index("<<<")
        start = max(text.rfind(mark, 0, at) for mark in (";", "{", "}")) + 1
        start = statement(text, start)
        end = text.index(">>>", at)
        blocks, threads, shared, _stream = split_arguments(text[at + 3 : end])
        # where a kernel asks for it, it has as much as there is: see `pool`
        assert shared in ("0", "kBytes"), "dynamic shared memory of a size that is not known"
        opening = text.index("(", end)
        close = closing(text, opening)
        kernel = text[start:at].strip()
        # a variable holds the kernel, or one of several instances, that was named last
        name = re.findall(r"\w+_kernel\b", text[:at])[-1]
        call = f"{kernel}{text[opening : close + 1]}"
        launch = f'emulator::launch("{name}", {blocks}, {threads}, [&] {{ {call}; }})'
        text = text[:start] + launch + text[close + 1 :]
    return text


def put_knobs(text: str) -> str:
    """Constants that are declared in the text become macros that ask the environment."""

    def macro(declaration: re.Match) -> str:
        lines = [""]
        for constant in split_arguments(declaration[1]):
            name, value = constant.split(" = ")
            kept = f"constexpr int64_t {constant};"
            call = f'#define {name} ::emulator::knob("MCR_EMULATED_{name}", {value})'
            lines.append(call if name in KNOBS else kept)
        return "\n".join([*lines, ""])

    return re.sub(r"\bconstexpr int64_t (k\w+ = [^;]*);", macro, text)


def translate(path: Path) -> str:
    text = put_knobs(translate_launches(path.read_text(encoding="utf-8")))
    for words, host_words in REPLACED.items():
        text = text.replace(words, host_words)
    assert not re.search(r"\basm\b", text), f"{path} holds inline PTX that is not known here"
    return text


def sources() -> list[Path]:
    """All but what only the CPU library has."""
    csrc = ROOT / "csrc"
    found = [path for path in csrc.glob("**/*.*") if "cpu" not in path.parts]
    return sorted(path for path in found if path.suffix == ".h" or "cuda" in path.parts)


def build(sanitize: bool = False) -> Path:
    """The library; compiled again when a source has changed, by one process at a time."""
    import fcntl  # not on every platform, and neither is the emulator

    own = [Path(__file__), HERE / "emulator.cpp", HERE / "emulator.h"]
    inputs = [*sources(), *own, *sorted((HERE / "include").iterdir())]
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()[:16]
    folder = ROOT / "build" / "emulated" / (digest + "-sanitized" * sanitize)
    library = folder / "libmcr_fast_emulated.so"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # whoever comes second finds what the first has built
        if not library.exists():
            shutil.rmtree(folder, ignore_errors=True)
            for path in sources():
                to = folder / path.relative_to(ROOT)
                to.parent.mkdir(parents=True, exist_ok=True)
                to.write_text(translate(path), encoding="utf-8")
            compile_all(folder, library, SANITIZE if sanitize else ())
    return library


def compile_all(folder: Path, library: Path, extra: tuple[str, ...]) -> None:
    defines = [f"-D{name}" for name in DEFINES] + [f"-D{a}={b}" for a, b in RENAMED.items()]
    includes = [f"-I{folder / 'csrc'}", f"-I{HERE / 'include'}", f"-I{HERE}"]
    includes += ["-include", "hooks.h"]
    includes += [f"-I{ROOT / 'csrc'}", *(f"-isystem{p}" for p in cpp_extension.include_paths())]
    units = [ROOT / "csrc" / "registration.cpp"]
    units += [ROOT / "csrc" / "permuted_divergence" / "cpu" / "checks.cpp"]
    units += [HERE / "emulator.cpp", *sorted((folder / "csrc").glob("**/cuda/*.c*"))]
    objects = [f"{folder / str(number)}-{unit.name}.o" for number, unit in enumerate(units)]
    running = []
    for unit, made in zip(units, objects, strict=True):
        kernel = ["-x", "c++", "-include", str(HERE / "emulator.h")] if unit.suffix == ".cu" else []
        command = ["c++", *FLAGS, *extra, *QUIET, *defines, *includes, *kernel]
        command += ["-c", str(unit), "-o", made]
        running.append(subprocess.Popen(command))
        if len(running) % 2 == 0:
            wait(running[-2:])
    wait(running)
    partial = library.with_suffix(".partial")
    subprocess.run(["c++", "-shared", *extra, *objects, *TORCH, "-o", str(partial)], check=True)
    partial.replace(library)


def wait(running: list[subprocess.Popen]) -> None:
    for process in running:
        assert process.wait() == 0, f"failed: {process.args}"
