"""Every kernel of Triton, compiled for GPUs that are not there as the suite's cases ask for it.

All cases that a GPU's Triton takes run through the launchers, without gradient, with it, and with
upstream gradients that differ; as they are, and once more with no batch counting as small. They
ask for thousands of kernels. The slow tier compiles so many for one generation that every feature
of a launch is there, and any two that decide between ways through a kernel if they meet anywhere;
for the others, each choice and each tile once. The quick tier compiles one of each kernel.
"""

import functools
import gc
import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator
from itertools import product

import pytest
import torch
from aot import Compiled
from blocks import LOSSES, make_block
from divergences import make_batch, options_of
from launched.driver import TARGETS, Asked, Notes, brief, covering, noted, thorough
from launched.ordering import unordered
from regularizer import LINEAR_CASES, LINEAR_LOSSES, LinearStep
from suite import backends, behaviour, cases
from suite.subjects import Divergence, Subject
from triton.runtime.jit import JITFunction

import mcr_fast.kernels
from mcr_fast.kernels import config, regularizer
from mcr_fast.kernels.divergence import BINARY_JSD
from mcr_fast.kernels.gather_add import GELU
from mcr_fast.ops.registry import BLOCKS
from mcr_fast.ops.row_divergence import row_divergence_parts

pytestmark = pytest.mark.process("launched")

ON = next(on for on in backends.ON_A_GPU if on.name == "triton")
SAMPLE_WORK = 1e5  # the elements that a case of the quick tier may have
# Bytes that a kernel spills, by its divergence and tile, whatever number of warps it has.
SPILLS = {("_row_divergence_fwd_kernel", BINARY_JSD.value, 4096): 280}


def modules() -> Iterator[str]:
    for module in pkgutil.walk_packages(mcr_fast.kernels.__path__, "mcr_fast.kernels."):
        yield module.name


def kernels() -> list[str]:
    """The names of all kernels that are launched."""
    found = (vars(importlib.import_module(name)).items() for name in modules())
    functions = {n for items in found for n, f in items if isinstance(f, JITFunction)}
    return sorted(name for name in functions if name.endswith("_kernel"))


def layouts(case: cases.Case) -> Iterator[Subject]:
    """The case's input, and as it is when a check passes it on in other layouts."""
    subject = case.make()
    yield subject
    if behaviour.strided in behaviour.of_case(case.checks, ON, case.thorough):
        yield from map(subject.map, (behaviour.stacked, behaviour.transposed))


def run_case(case: cases.Case) -> None:
    for subject in layouts(case):
        upstream = subject.upstream()
        with torch.no_grad():
            subject.call(ON.argument)
        subject.run(ON.argument, upstream)
        if upstream.ndim:
            subject.run(ON.argument, torch.ones(upstream.shape))
        if subject.op == "row_divergence":  # as the engine of a fusion that is run calls it
            options = options_of(subject.inputs, **subject.options)
            row_divergence_parts(
                *subject.inputs.tensors(), **options, want_grad=True, backend=ON.argument
            )


def run_regularizer(rows: int, modalities: int, options: dict, masked: bool) -> None:
    step = LinearStep("triton", rows, modalities, options, masked)
    with torch.no_grad():
        step.run()
    for loss in LINEAR_LOSSES:
        torch.autograd.grad(loss(step.run(), step.labels), step.leaves(), allow_unused=True)


def run_scaling() -> None:
    """Each set of upstream gradients that are None has a kernel of its own."""
    rows, width, classes = 32, 16, 24
    latents, weight = [torch.randn(rows, width) for _ in range(2)], torch.randn(classes, 2 * width)
    units = torch.randn(2, rows, classes), torch.randn(classes), torch.randn(2 * rows, width)
    for grads in product((None, torch.ones(())), repeat=3):
        for to_logits in (None, torch.randn(rows, classes)):
            rest = (*units, 0.1, 1.0, [1, 1, 1], latents, weight)
            regularizer.regularizer_bwd(*grads, to_logits, *rest)


def run_blocks(loss: str, dtype: torch.dtype, sizes: tuple[int, int], temperature: float) -> None:
    """Anchors against columns of which they are a part, or not."""
    for marked, offset in ((False, 0), (True, -1)):
        given = {"offset": offset, "marked": marked, "dtype": dtype, "temperature": temperature}
        block = make_block(loss, *sizes, 40, 5, **given)
        for op in BLOCKS:
            getattr(torch.ops.mcr_fast, op).triton(*block.of(op))


def steps(quick: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    """Everything that is run, by its name."""
    for case in cases.every():
        if case.is_for(ON) and not (quick and (not case.is_quick(ON) or case.work > SAMPLE_WORK)):
            yield f"{case.op}-{case.name}", functools.partial(run_case, case)
    for each in LINEAR_CASES[:: 3 if quick else 1]:
        yield f"regularizer-{each}", functools.partial(run_regularizer, *each)
    yield "regularizer_bwd", run_scaling
    dtypes = (torch.float16, torch.float32, torch.bfloat16)
    for loss, dtype, sizes, temperature in product(
        LOSSES,
        dtypes[: 1 if quick else 3],
        ((48, 100), (1500, 1500))[: 1 if quick else 2],
        (0.5, 0.01),
    ):
        name = f"blocks-{loss}-{dtype}-{sizes}-{temperature}"
        yield name, functools.partial(run_blocks, loss, dtype, sizes, temperature)


@functools.cache
def launches(quick: bool) -> Notes:
    """What all launches ask for."""
    notes = Notes()
    for name, run in steps(quick):
        with noted(notes, name):
            run()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "SMALL_ROWS", 0)
        patch.setattr(config, "SMALL_CONTRASTIVE", (0, 0))
        patch.setattr(config, "FEW_ROWS", 0)
        for name, run in steps(quick):
            with noted(notes, f"large {name}"):
                run()
    return notes


def compiled(asked: Asked, target: int) -> Compiled:
    """Compiled: nothing spilled, no library called, nothing read back before it is written."""
    kernel = asked.compile(target)
    # the library's erf is the exact one
    exact = asked.arguments.get("ACTIVATION") == GELU.value
    constants = (asked.arguments.get(name) for name in ("KIND", "BLOCK_C"))
    kernel.check(("__nv_erff",) if exact else (), SPILLS.get((kernel.name, *constants), 0))
    early = unordered(kernel.asm["ttgir"])
    assert not early, f"no barrier between stores into {early} and loads from there"
    return kernel


def check(chosen: list[Asked], target: int) -> None:
    """All of them compile as they should."""
    assert chosen, "no launch asks for it"
    wrong = {}
    for asked in chosen:
        try:
            compiled(asked, target)
        except Exception as error:
            wrong[asked.source] = f"{type(error).__name__}: {error}"
    assert not wrong, f"{len(wrong)} of {len(chosen)}: {wrong}"


def tensors() -> dict[int, torch.Tensor]:
    gc.collect()
    return {id(x): x for x in gc.get_objects() if torch.is_tensor(x)}


def test_nothing_is_kept_between_calls():
    """A tensor that a first call left for the next ones might lie in a CUDA graph's memory.

    It comes before the other tests, which look at the same launches.
    """
    cases.every()  # some of them hold tensors
    before = tensors()
    launches(True)
    kept = [x.shape for at, x in tensors().items() if at not in before]
    assert not kept


@pytest.mark.parametrize("kernel", kernels())
def test_sample(kernel):
    check(covering(launches(True).of(kernel), brief)[:1], TARGETS[0])


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", kernels())
def test_every_case(kernel, target):
    check(covering(launches(False).of(kernel), thorough if target == TARGETS[0] else brief), target)


@pytest.mark.parametrize("small", [True, False])
def test_masked_without_weights(small, monkeypatch):
    """What follows a return is compiled too, even where the return is always taken."""
    if not small:
        monkeypatch.setattr(config, "SMALL_ROWS", 0)
    subject, notes = Divergence(make_batch(2, 32, 24), {"exclude": "self"}, -2.5), Notes()
    with noted(notes, "masked"):
        subject.run(ON.argument, subject.upstream())
    names = {"_small_own_side_kernel", "_small_donor_side_kernel"}
    if not small:
        names = {"_own_side_kernel", "_donor_side_kernel", "_pair_weight_sums_kernel"}
    for name in names:
        (asked,) = notes.of(name)
        compiled(asked, TARGETS[0])


# a kernel, and what it writes and reads back
@pytest.mark.parametrize(
    ("kernel", "memory"),
    [
        pytest.param("_own_side_kernel", "grad_ptr"),
        pytest.param("_permutations_kernel", "inverse_ptr"),
        pytest.param("_row_divergence_fwd_kernel", "order_ptr", marks=pytest.mark.slow),
        pytest.param("_small_sums_kernel", "scratch_ptr", marks=pytest.mark.slow),
    ],
)
def test_without_its_barriers_it_would_read_too_early(kernel, memory):
    for asked in covering(launches(True).of(kernel), thorough):
        code = compiled(asked, TARGETS[0]).asm["ttgir"]
        if unordered(re.sub(r"(gpu|ttg)\.barrier", "nothing", code)) == {memory}:
            return
    pytest.fail("no launch needs them")
