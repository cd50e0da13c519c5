"""What is slow here and could be fast: the reasons for an exit status of 1."""

from typing import NamedTuple

from mcr_fast._cuda_code import below_floor, floor_of
from mcr_fast._libraries import HOW_TO_BUILD
from mcr_fast.env._facts import Facts

BACKENDS = ("cpu", "triton", "cuda")  # that a job may require


class Reason(NamedTuple):
    """One line of the command's stderr."""

    id: str  # does not change from version to version
    reason: str
    fix: str


def reasons(facts: Facts, required: tuple[str, ...] = ()) -> list[Reason]:
    """All of them; with required backends what keeps these from serving their ops, nothing else.

    Elsewhere than on Linux nothing is compiled, and there is no Triton: nothing is slow that could
    be fast, but a backend that is required is missing all the same.
    """
    if not required and facts.python.system != "Linux":
        return []
    found = []
    if not required or "cpu" in required:
        found += of_cpu(facts)
    if not required or {"triton", "cuda"} & set(required):
        found += of_gpu(facts, needed=bool(required))
    if not required or "triton" in required:
        found += of_triton(facts, needed="triton" in required)
    if not required or "cuda" in required:
        found += of_cuda(facts, needed="cuda" in required)
    return found


def of_cpu(facts: Facts) -> list[Reason]:
    """The CPU library, and the instruction set that it uses."""
    cpu = facts.cpu
    if not cpu.loaded:
        return [Reason("cpu-library", f"no compiled CPU library ({cpu.why_not})", HOW_TO_BUILD)]
    found = []
    slow = [op for op, served in facts.ops.items() if served["cpu"].backend != "cpu"]
    if slow:
        found.append(
            Reason(
                "cpu-ops",
                f"the CPU library that is loaded ({cpu.source}) has no kernels for "
                f"{', '.join(slow)}",
                HOW_TO_BUILD,
            )
        )
    if cpu.capability != cpu.best_capability:
        found.append(
            Reason(
                "cpu-capability",
                f"the CPU kernels use {cpu.capability}, this processor has {cpu.best_capability}",
                "unset MCR_FAST_CPU_CAPABILITY",
            )
        )
    return found


def of_gpu(facts: Facts, needed: bool) -> list[Reason]:
    """The GPU, its driver, and whether torch can use them."""
    version, gpus = facts.torch.version, facts.gpus
    if facts.torch.cuda is None:
        if not gpus and not needed:
            return []
        here = f", and there is a GPU ({gpus[0].name})" if gpus else ""
        return [
            Reason(
                "torch-without-cuda",
                f"torch {version} is built without CUDA{here}",
                "install a CUDA build of torch",
            )
        ]
    if below_floor(facts.torch.cuda, facts.driver.version, facts.driver.cuda):
        return [Reason("torch-driver", *_too_old(f"torch {version}", facts.torch.cuda, facts))]
    if facts.torch.sees_gpu:
        return []
    if gpus:
        why = f": {facts.torch.why_no_gpu}" if facts.torch.why_no_gpu else ""
        return [
            Reason(
                "torch-gpu",
                f"nvidia-smi lists a GPU ({gpus[0].name}) that torch cannot use{why}",
                'see what `python -c "import torch; torch.zeros(1).cuda()"` says',
            )
        ]
    return [Reason("no-gpu", "no GPU was found", "run on a node that has one")] if needed else []


def of_triton(facts: Facts, needed: bool) -> list[Reason]:
    """Triton, which is all that some ops have on a GPU."""
    if facts.torch.cuda is None:
        return []  # said of the GPU
    triton = facts.triton
    if triton.why_not is not None:
        return [Reason("triton", triton.why_not, "install the Triton that belongs to this torch")]
    found = []
    if facts.variables.get("TRITON_INTERPRET") == "1":
        found.append(
            Reason(
                "triton-interpret",
                "TRITON_INTERPRET=1 keeps Triton from serving CUDA tensors",
                "unset it",
            )
        )
    if triton.why_no_start is not None and (needed or facts.gpus):
        found.append(
            Reason(
                "triton-start",
                f"Triton cannot start: {triton.why_no_start}",
                "load a compiler module, or install gcc and Python's headers",
            )
        )
    return found


def of_cuda(facts: Facts, needed: bool) -> list[Reason]:
    """The CUDA library. Where none is installed Triton serves, which is no reason by itself."""
    cuda = facts.cuda
    if facts.torch.cuda is None or not (needed or cuda.present):
        return []
    if not cuda.loaded and not facts.cpu.loaded and not needed:
        return []  # said of the CPU library, which is loaded first
    if not cuda.loaded:
        fix = "build it with MCR_FAST_BUILD=cuda, or use a wheel that has it"
        return [Reason("cuda-library", f"no CUDA kernels ({cuda.why_not})", fix)]
    if cuda.toolkit is not None and below_floor(
        cuda.toolkit, facts.driver.version, facts.driver.cuda
    ):
        return [Reason("cuda-driver", *_too_old("the CUDA library", cuda.toolkit, facts))]
    unserved = sorted({g.capability for g in facts.gpus if g.capability and not g.served_by})
    if cuda.architectures and unserved:
        return [
            Reason(
                "cuda-architectures",
                f"the CUDA library has no code for a GPU of {', '.join(unserved)} under this "
                f"driver: it holds {' '.join(cuda.architectures)}",
                f'build it with TORCH_CUDA_ARCH_LIST="{";".join(unserved)}", or without it '
                "(MCR_FAST_BUILD=cpu), and Triton serves",
            )
        ]
    lacking = [op for op, served in facts.ops.items() if "cuda" in served["cuda"].why_not_faster]
    if not lacking:
        return []
    why = f"the CUDA library that is loaded has no kernels for {', '.join(lacking)}"
    return [Reason("cuda-ops", why, "build it anew with MCR_FAST_BUILD=cuda")]


def _too_old(what: str, toolkit: str, facts: Facts) -> tuple[str, str]:
    """The words for a driver below a floor: what is so, and what to do."""
    wanted, release = floor_of(toolkit)
    driver = facts.driver
    least = (
        f"driver {release} or newer (CUDA {wanted})" if release else f"a driver of CUDA {wanted}"
    )
    return (
        f"{what} is built with CUDA {toolkit} and needs {least}, found "
        f"{driver.version or 'one'} (CUDA {driver.cuda or 'unknown'})",
        f"update the driver, or take a build with CUDA {(driver.cuda or '12').split('.')[0]}",
    )
