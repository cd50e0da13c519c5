"""Builds the compiled libraries with CMake and packs them beside the Python files.

It needs no torch: third_party/torch has the headers. What is not compiled says why when the package
is imported, from a file beside the libraries: pip shows nothing of a build that succeeds.

``MCR_FAST_BUILD`` says what to compile:

- ``auto`` (default): the CPU library where it can be built. The CUDA one too where there are nvcc
  and a use for it: a GPU, a CUDA torch, or GPUs named in ``TORCH_CUDA_ARCH_LIST``. It prints what
  it chose, which ``pip install -v`` shows
- ``cpu``: the CPU library, or an error
- ``cuda``: the CPU library and the CUDA one, or an error. That needs nvcc, but neither a GPU nor a
  CUDA torch; the library is loaded beside a CUDA torch only
- ``none``: nothing; every op then runs through the plain-torch reference

``TORCH_CUDA_ARCH_LIST`` says for which GPUs, as for torch's own extensions: ``8.0;9.0+PTX``, or
``all`` that a wheel serves.
"""

from __future__ import annotations

import os
import platform
import re
import runpy
import shutil
import site
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path

from setuptools import Command, Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build

ROOT = Path(__file__).resolve().parent
CHOICES = ("auto", "cpu", "cuda", "none")
COMPILERS = ["c++", "g++", "clang++"]
NOT_BUILT = "not_built.txt"  # in mcr_fast/lib; mcr_fast/_libraries.py reads it
NO_NVCC = "nvcc was not found; set CUDA_HOME or CUDACXX"
DOES_NOT_COMPILE = (
    "mcr_fast: the libraries do not compile here, for the reason above. They need a C++17 "
    "compiler, which CXX names; MCR_FAST_BUILD=none installs the package without them, but slow"
)
CUDA_DOES_NOT_COMPILE = f"{DOES_NOT_COMPILE}. MCR_FAST_BUILD=cpu leaves the CUDA library out"

# Every GPU that a wheel serves: Turing to Blackwell, and PTX for what comes later.
WHEEL_ARCHITECTURES = "7.5;8.0;8.6;8.9;9.0;10.0;12.0+PTX"
# A build from source serves one machine: its GPUs, or any from 8.0 on, compiled at first use. Each
# architecture takes a minute of one core.
SOURCE_ARCHITECTURES = "8.0+PTX"


def find_tool(name: str) -> str | None:
    """A program on PATH, or beside this Python (a virtual environment that is not activated)."""
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    return str(Path(found).absolute()) if found else None  # CMake runs elsewhere


def torch_cuda() -> str | None:
    """The CUDA that the torch of this Python is built with, None without a CUDA torch.

    pip's build isolation takes the environment's packages off ``sys.path``, not off the disk.
    """
    places = [*sys.path, *site.getsitepackages([sys.prefix, sys.base_prefix])]
    torch = PathFinder.find_spec("torch", places)
    for folder in torch.submodule_search_locations or [] if torch else []:
        version = Path(folder) / "version.py"
        if version.is_file():
            cuda: str | None = runpy.run_path(str(version)).get("cuda")
            return cuda
    return None


def missing_for_cpu() -> str | None:
    """Why the CPU library cannot be built here, None if it can."""
    if platform.system() != "Linux":
        return f"compiled kernels are built on Linux only, this is {platform.system()}"
    for tool in ("cmake", "ninja"):
        if find_tool(tool) is None:
            return f"{tool} was not found; `pip install {tool}`"
    compilers = os.environ["CXX"].split()[:1] if os.environ.get("CXX") else COMPILERS
    if not any(shutil.which(compiler) for compiler in compilers):
        return f"no C++ compiler ({', '.join(compilers)} not found); install one or set CXX"
    return None


def find_nvcc() -> str | None:
    """The CUDA compiler: ``CUDACXX``, ``CUDA_HOME``, or on PATH."""
    if os.environ.get("CUDACXX"):
        return shutil.which(os.environ["CUDACXX"])
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    return shutil.which("nvcc", path=f"{home}/bin") if home else shutil.which("nvcc")


def gpu_architectures() -> str | None:
    """Compute capabilities of the GPUs here, None if there are none or nobody can say."""
    nvidia_smi = shutil.which("nvidia-smi")
    if nvidia_smi is None:
        return None
    query = [nvidia_smi, "--query-gpu=compute_cap", "--format=csv,noheader"]
    result = subprocess.run(query, capture_output=True, text=True, check=False)
    found = sorted(set(result.stdout.split())) if result.returncode == 0 else []
    return ";".join(found) if all(part.replace(".", "").isdigit() for part in found) else None


def cuda_architectures() -> str:
    """What to compile for, in CMake's words: ``80-real;90-real;90-virtual``."""
    wanted = os.environ.get("TORCH_CUDA_ARCH_LIST") or gpu_architectures() or SOURCE_ARCHITECTURES
    if wanted == "all":
        wanted = WHEEL_ARCHITECTURES
    named = []
    for entry in wanted.replace(",", ";").replace(" ", ";").split(";"):
        number, plus, _ = entry.partition("+")
        code = number.replace(".", "")
        if not code.rstrip("af").isdigit():
            raise SystemExit(
                f"TORCH_CUDA_ARCH_LIST={wanted!r}: {entry!r} is not an architecture; "
                "give numbers such as '8.0;9.0+PTX', or 'all'"
            )
        named.append(f"{code}-real")
        if plus:
            named.append(f"{code}-virtual")
    return ";".join(named)


def missing_for_cuda() -> str | None:
    """Why ``auto`` leaves the CUDA library out, None if it is compiled. It takes minutes."""
    if find_nvcc() is None:
        return NO_NVCC
    if torch_cuda() or os.environ.get("TORCH_CUDA_ARCH_LIST") or gpu_architectures():
        return None
    return "neither a GPU nor a CUDA torch; MCR_FAST_BUILD=cuda compiles for them all the same"


def choose_build() -> tuple[str, str]:
    """What ``MCR_FAST_BUILD`` comes to here: "cuda", "cpu" or "none", and for the last why."""
    wanted = os.environ.get("MCR_FAST_BUILD", "auto")
    if wanted not in CHOICES:
        raise SystemExit(f"MCR_FAST_BUILD={wanted!r} is unknown; choose {', '.join(CHOICES)}")
    if wanted == "none":
        return "none", "it was installed with MCR_FAST_BUILD=none"
    reason = missing_for_cpu()
    if wanted in ("cpu", "cuda") and reason:
        raise SystemExit(f"MCR_FAST_BUILD={wanted} cannot be built: {reason}")
    if wanted == "cuda" and find_nvcc() is None:
        raise SystemExit(f"MCR_FAST_BUILD=cuda cannot be built: {NO_NVCC}")
    if wanted != "auto":
        return wanted, ""
    no_cuda = reason or missing_for_cuda()
    chosen = "none" if reason else "cpu" if no_cuda else "cuda"
    why = no_cuda or f"the CPU library, and the CUDA one with {find_nvcc()}"
    print(f"mcr_fast: MCR_FAST_BUILD=auto builds {chosen!r} ({why})", file=sys.stderr)
    return chosen, f"when it was installed: {reason}" if reason else ""


def forget_other_nvcc(build_dir: Path, nvcc: str | None) -> None:
    """CMake's record of the CUDA compiler, where it is another one: it would drop every option."""
    cache = build_dir / "CMakeCache.txt"
    text = cache.read_text() if cache.is_file() else ""
    recorded = re.search(r"^CMAKE_CUDA_COMPILER:\w+=(.*)$", text, re.MULTILINE)
    if recorded and recorded[1] != nvcc:
        for path in (cache, *build_dir.glob("CMakeFiles/*/CMakeCUDACompiler.cmake")):
            path.unlink()


def run_cmake(build_dir: Path, cuda: bool) -> list[Path]:
    """Configure and build; returns the libraries made."""
    import fcntl  # not on every platform, and neither are the libraries

    cmake, ninja = str(find_tool("cmake")), find_tool("ninja")
    build_dir.mkdir(parents=True, exist_ok=True)
    with open(build_dir / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two builds at once would write the same objects
        configure = [
            *(cmake, "-S", str(ROOT), "-B", str(build_dir), "-G", "Ninja"),
            f"-DCMAKE_MAKE_PROGRAM={ninja}",
            f"-DMCR_CUDA={'ON' if cuda else 'OFF'}",
        ]
        if cuda:
            forget_other_nvcc(build_dir, find_nvcc())
            configure.append(f"-DCMAKE_CUDA_COMPILER={find_nvcc()}")
            configure.append(f"-DMCR_CUDA_ARCHITECTURES={cuda_architectures()}")
        for command in (configure, [cmake, "--build", str(build_dir)]):
            if subprocess.run(command, check=False).returncode:
                raise SystemExit(CUDA_DOES_NOT_COMPILE if cuda else DOES_NOT_COMPILE)
        names = ["libmcr_fast_cpu.so", *(["libmcr_fast_cuda.so"] if cuda else [])]
        return [build_dir / "lib" / name for name in names]


class BuildNative(Command):
    """Puts the libraries into mcr_fast/lib/ of the wheel, or of the source tree when editable."""

    description = "compile the libraries with CMake"
    user_options: list[tuple[str, str | None, str]] = []

    def initialize_options(self) -> None:
        self.editable_mode = False
        self.build_lib: str | None = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build", ("build_lib", "build_lib"))

    def destination(self) -> Path:
        return (ROOT if self.editable_mode else Path(str(self.build_lib))) / "mcr_fast" / "lib"

    def run(self) -> None:
        destination = self.destination()
        libraries = run_cmake(ROOT / "build" / "native", BUILD == "cuda") if BUILD != "none" else []
        keep = {destination / library.name for library in libraries}
        for stale in {*destination.glob("*.so"), destination / NOT_BUILT} - keep:
            stale.unlink(missing_ok=True)
        destination.mkdir(parents=True, exist_ok=True)
        for library in libraries:
            fresh = destination / f"{library.name}.new"
            shutil.copy2(library, fresh)
            fresh.replace(destination / library.name)  # a process may hold the old one mapped
        if not libraries:
            (destination / NOT_BUILT).write_text(f"{WHY_NONE}\n", encoding="utf-8")

    def get_source_files(self) -> list[str]:
        folders = (ROOT / "csrc", ROOT / "third_party")
        sources = (path for folder in folders for path in folder.rglob("*") if path.is_file())
        return ["CMakeLists.txt", *(str(path.relative_to(ROOT)) for path in sources)]

    def get_outputs(self) -> list[str]:
        return [str(p) for p in self.destination().glob("*.*")]

    def get_output_mapping(self) -> dict[str, str]:
        return {}


class Build(build):
    """The standard build and the libraries."""

    sub_commands = [*build.sub_commands, ("build_native", None)]

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)  # no file of an earlier build in a wheel
        super().run()


class MCRDistribution(Distribution):
    """A wheel with a library belongs to one platform, although it has no Python extension."""

    def has_ext_modules(self) -> bool:
        return BUILD != "none"


class BdistWheel(bdist_wheel):
    """Tagged for any Python 3: the libraries do not touch Python's ABI."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


BUILD, WHY_NONE = choose_build()

setup(
    distclass=MCRDistribution,
    cmdclass={"build": Build, "build_native": BuildNative, "bdist_wheel": BdistWheel},
)
