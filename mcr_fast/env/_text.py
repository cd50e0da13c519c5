"""The facts on one screen: at most 40 lines of 100 columns, but for paths that are longer."""

import textwrap
from collections import Counter

from mcr_fast._cuda_code import floor_of
from mcr_fast._libraries import HOW_TO_BUILD
from mcr_fast.env._facts import Facts

COLUMNS = 100
_LABEL = 16


def text_of(facts: Facts) -> str:
    """What the command prints."""
    lines = [*_here(facts), *_of_cpu(facts), *_of_gpu(facts)]
    if facts.variables:
        values = ", ".join(f"{name}={value}" for name, value in facts.variables.items())
        lines += _row("variables", values)
    return "\n".join([*lines, "", *_ops(facts), *_why(facts)])


def _row(label: str, text: str) -> list[str]:
    """A label and a text that goes on below itself; a path is never broken."""
    return textwrap.wrap(
        text,
        COLUMNS,
        initial_indent=f"{label:<{_LABEL}}",
        subsequent_indent=" " * _LABEL,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _here(facts: Facts) -> list[str]:
    package, python, glibc = facts.package, facts.python, facts.glibc
    kind = {"wheel": f"wheel {package.tag}", "source": "source tree"}.get(package.kind, "copy")
    pure = "" if package.libraries else ", pure Python"
    needs = ", ".join(f"{name} needs {need or '?'}" for name, need in glibc.needed.items())
    lines = [f"{'mcr_fast':<{_LABEL}}{package.version}, {kind}{pure}, in {package.place}"]
    lines += _row("python", f"{python.version}, {python.platform}")
    if glibc.found or needs:
        lines += _row("glibc", "; ".join(x for x in (glibc.found or "none", needs) if x))
    lines += _row("torch", f"{facts.torch.version} (CUDA {facts.torch.cuda or 'none'})")
    return lines


def _of_cpu(facts: Facts) -> list[str]:
    cpu = facts.cpu
    if not cpu.loaded:
        lines = [f"{'CPU library':<{_LABEL}}not loaded"]
        # the loader's words come last and stay whole, however long the path in front
        return [*lines, f"{'error':<{_LABEL}}{cpu.why_not}", *_row("to build", HOW_TO_BUILD)]
    best = f" (this processor has {cpu.best_capability})"
    forced = best if cpu.capability != cpu.best_capability else ""
    return [
        f"{'CPU library':<{_LABEL}}{cpu.source}",
        *_row("built with", str(cpu.build)),
        *_row(
            "CPU capability", f"{cpu.capability}{forced}; {cpu.threads} threads, {cpu.cores} cores"
        ),
    ]


def _of_gpu(facts: Facts) -> list[str]:
    driver, cuda, triton = facts.driver, facts.cuda, facts.triton
    lines = _row("driver", "none found")
    if driver.version or driver.cuda:
        known = f"{driver.version or 'release unknown'}, up to CUDA {driver.cuda or 'unknown'}"
        lines = _row("driver", known)
    names = Counter((gpu.name, gpu.capability, gpu.served_by) for gpu in facts.gpus)
    lines += [] if names else _row("GPU", "none found")
    for (name, capability, code), count in names.items():
        runs = f"; of the CUDA library it runs {code or 'nothing'}" if cuda.architectures else ""
        lines += _row("GPU", f"{count} x {name}, compute capability {capability or '?'}{runs}")
    lines += _row("CUDA library", cuda.why_not or "loaded")
    if cuda.toolkit:
        wanted, release = floor_of(cuda.toolkit)
        floor = f"needs driver {release} (CUDA {wanted})" if release else f"needs CUDA {wanted}"
        held = " ".join(cuda.architectures or ())
        lines += _row("", f"built with CUDA {cuda.toolkit}, {floor}; holds {held}")
    elif cuda.present:
        lines += _row("", "its file does not say which CUDA and which GPUs it is built for")
    words = triton.version, triton.why_not or triton.why_no_start or "usable"
    lines += _row("Triton", "; ".join(filter(None, words)))
    return lines


def _ops(facts: Facts) -> list[str]:
    width = max(len(op) for op in facts.ops)
    lines = [f"{'op':<{width}}  {'CPU tensors':<11}  CUDA tensors"]
    for op, served in facts.ops.items():
        lines.append(f"{op:<{width}}  {served['cpu'].backend:<11}  {served['cuda'].backend}")
    return lines


def _why(facts: Facts) -> list[str]:
    """A line for each backend and reason that keeps it from coming first, with the ops."""
    of: dict[tuple[str, str], dict[str, None]] = {}
    for op, kinds in facts.ops.items():
        for served in kinds.values():
            for backend, reason in served.why_not_faster.items():
                of.setdefault((backend, reason), {})[op] = None
    if not of:
        return []
    lines = ["", "why not a faster one"]
    for (backend, reason), ops in of.items():
        whose = "every op" if len(ops) == len(facts.ops) else ", ".join(ops)
        lines += _row(backend, f"{reason} ({whose})")
    return lines
