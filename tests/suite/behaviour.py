"""What a few small cases of each op are put through: what does not depend on their numbers.

And which checks a case has on which backend.
"""

import functools
import warnings
from dataclasses import replace

import pytest
import torch
from divergences import assert_same_bits, on_threads, with_dirty_memory
from torch.autograd import forward_ad

from suite.backends import Backend
from suite.checks import Check, bound, leaves_of, tiny_weights
from suite.subjects import Subject


def stacked(t: torch.Tensor) -> torch.Tensor:
    return torch.stack([t, t], -1)[..., 1]


def transposed(t: torch.Tensor) -> torch.Tensor:
    return t.mT.contiguous().mT if t.ndim > 1 else t


def repeat(subject: Subject, on: Backend) -> None:
    """The same bits every run, whatever memory holds, on any number of threads twice."""
    upstream = subject.upstream()
    for threads in (1, 2) if on.process is None and on.device == "cpu" else (1,):
        with on_threads(threads):
            expected = subject.run(on.argument, upstream)
            for _ in range(2):
                device = expected[0].device
                junk = [torch.full((1 << k,), torch.nan, device=device) for k in range(4, 20)]
                del junk
                assert_same_bits(subject.run(on.argument, upstream), expected)


def dirty_memory(subject: Subject, on: Backend) -> None:
    """No memory is read that was not written, the C library's neither."""
    again = functools.partial(subject.run, on.argument, subject.upstream())
    expected = again()
    for dirty in with_dirty_memory(again):
        assert_same_bits(dirty, expected)


def last_first(subject: Subject, on: Backend) -> None:
    """No block reads or overwrites what another one of its launch leaves."""
    expected = subject.run(on.argument, subject.upstream())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MCR_EMULATED_LAST_FIRST", "1")
        assert_same_bits(subject.run(on.argument, subject.upstream()), expected)


def strided(subject: Subject, on: Backend) -> None:
    """Inputs that are not contiguous, and transposed ones."""
    for layout in (stacked, transposed):
        other = subject.map(layout)
        if on.device == "cuda":  # a GPU may read them by other instructions
            other.check(on.argument)
        else:
            upstream = subject.upstream()
            expected = subject.run(on.argument, upstream)
            assert_same_bits(other.run(on.argument, upstream), expected)


def value_alone(subject: Subject, on: Backend) -> None:
    """The value without any gradient, and under no_grad."""
    expected = subject.run(on.argument, subject.upstream())[0]
    leaves, _ = leaves_of(subject)
    with torch.no_grad():
        values = [subject.call(on.argument), leaves.call(on.argument)]
    for value in values:
        assert not value.requires_grad
        if on.name == "triton":  # its kernels without a gradient sum in another order
            torch.testing.assert_close(value, expected, rtol=1e-5, atol=0)
        else:
            assert torch.equal(value, expected)


def backward_twice(subject: Subject, on: Backend) -> None:
    """The backward leaves what it needs as it was."""
    subject, leaves = leaves_of(subject)
    value = subject.call(on.argument).sum()
    value.backward(retain_graph=True)
    once = [t.grad.clone() for t in leaves]
    value.backward()
    assert_same_bits([t.grad for t in leaves], [2 * g for g in once])


def some_gradients(subject: Subject, on: Backend) -> None:
    """Each input by itself gets the gradient that it gets among the others."""
    expected = subject.run(on.argument, torch.ones_like(subject.upstream()))
    for k in range(subject.differentiable):
        alone, (leaf,) = leaves_of(subject, (k,))
        value = alone.call(on.argument)
        value.sum().backward()
        assert_same_bits([value.detach(), leaf.grad], [expected[0], expected[1 + k]])


def no_second_derivative(subject: Subject, on: Backend) -> None:
    """It raises, and names the op."""
    again, leaves = leaves_of(subject)
    value = again.call(on.argument).sum()
    for grad in torch.autograd.grad(value, leaves, create_graph=True):
        with pytest.raises(RuntimeError, match=f"{subject.op} cannot be differentiated twice"):
            (value + grad.square().sum()).backward(retain_graph=True)


def no_forward_mode(subject: Subject, on: Backend) -> None:
    """It raises for each input."""
    for k in range(subject.differentiable):
        with forward_ad.dual_level():
            tensors = subject.tensors()
            tensors[k] = forward_ad.make_dual(tensors[k], torch.ones_like(tensors[k]))
            with pytest.raises(NotImplementedError, match="forward mode"):
                subject.with_tensors(tensors).call(on.argument)


def autocast(subject: Subject, on: Backend) -> None:
    """It changes nothing."""
    upstream = subject.upstream()
    expected = subject.run(on.argument, upstream)
    with torch.autocast(on.device, torch.bfloat16):
        assert_same_bits(subject.run(on.argument, upstream), expected)


def compiled(subject: Subject, on: Backend, dynamic: bool | None = None) -> None:
    """Compiled as one graph it gives the bits of eager mode, if `dynamic` for fewer rows too."""
    others = [subject.map(lambda t: t[: len(t) * 2 // 3])] if dynamic else []

    def step(*tensors: torch.Tensor) -> torch.Tensor:
        return subject.with_tensors(list(tensors)).call(on.argument).sum() * 3

    torch._dynamo.reset()
    traced = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for given in (subject, *others):
        results = []
        for function in (step, traced):
            chosen, leaves = leaves_of(given)
            loss = function(*chosen.tensors())
            results.append((loss.detach(), *torch.autograd.grad(loss, leaves)))
        assert_same_bits(*results)


def opcheck(subject: Subject, on: Backend) -> None:
    """torch's own checks of an op: schema, fake tensors, autograd."""
    if on.name == "triton" and subject.op == "row_divergence" and not subject.notes:
        opcheck(replace(subject, notes=True), on)
    overload = "triton" if on.name == "triton" else "default"
    forward, backward = (
        getattr(getattr(torch.ops.mcr_fast, f"{subject.op}_{way}"), overload)
        for way in ("fwd", "bwd")
    )
    utils = ("test_schema", "test_autograd_registration", "test_faketensor")
    if on.name != "triton":
        utils += ("test_aot_dispatch_dynamic",)
    for want_grad in (False, True):
        torch.library.opcheck(forward, subject.op_arguments(want_grad), test_utils=utils)
    results = forward(*subject.op_arguments(True))
    torch.library.opcheck(backward, subject.grad_arguments(results), test_utils=utils)
    torch.library.opcheck(forward, leaves_of(subject)[0].op_arguments(True), test_utils=utils)


def gradcheck(subject: Subject, on: Backend) -> None:
    """Finite differences see the true gradient, and routing that scales nothing gives it."""
    subject, leaves = leaves_of(subject)
    rest = subject.tensors()[len(leaves) :]
    torch.autograd.gradcheck(
        lambda *given: subject.with_tensors([*given, *rest]).call(on.argument), leaves
    )


def side_stream(subject: Subject, on: Backend) -> None:
    """Kernels run on the current stream: inputs arrive late on it, and nothing waits for others."""
    upstream = subject.upstream()
    expected = subject.run(on.argument, upstream)
    late = subject.map(torch.zeros_like)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        for target, source in zip(late.tensors(), subject.tensors(), strict=True):
            target.copy_(source)
        found = late.run(on.argument, upstream)
    torch.cuda.current_stream().wait_stream(stream)
    assert_same_bits(found, expected)


def graph(subject: Subject, on: Backend) -> None:
    """Captured once and replayed on other values: the same bits as without a graph."""
    upstream = subject.upstream()
    expected = subject.run(on.argument, upstream)
    static = subject.map(torch.clone)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        static.run(on.argument, upstream)
    torch.cuda.current_stream().wait_stream(stream)
    captured = torch.cuda.CUDAGraph()
    for tensor in static.tensors():
        if tensor.is_floating_point():
            tensor.fill_(0.25)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an empty batch gives an empty graph
        with torch.cuda.graph(captured):
            found = static.run(on.argument, upstream)
    for target, source in zip(static.tensors(), subject.tensors(), strict=True):
        target.copy_(source)
    captured.replay()
    torch.cuda.synchronize()
    assert_same_bits(found, expected)


def no_sync(subject: Subject, on: Backend) -> None:
    """Neither forward nor backward waits for the device."""
    upstream = subject.upstream()
    subject.run(on.argument, upstream)
    torch.cuda.set_sync_debug_mode("error")
    try:
        subject.run(on.argument, upstream)
    finally:
        torch.cuda.set_sync_debug_mode("default")


BEHAVIOUR: tuple[Check, ...] = (
    *(repeat, dirty_memory, strided, value_alone, backward_twice, some_gradients),
    *(no_second_derivative, no_forward_mode, autocast, compiled, opcheck),
)
ON_A_GPU: tuple[Check, ...] = (bound, repeat, strided, side_stream, graph, no_sync)
# what has to do with the host's memory, or with an op's registration, which is the same everywhere
ONLY_CPU = (gradcheck,)
ONLY_HOST = (*ONLY_CPU, opcheck, dirty_memory, tiny_weights)


def of_case(own: tuple[Check, ...], on: Backend, thorough: bool) -> list[Check]:
    """A case's own checks on a backend; on a GPU all the usual ones for a thorough one's bound."""
    if on.device == "cuda":
        usual = ON_A_GPU if thorough and bound in own else ()
        return [*usual, *(c for c in own if c not in (*usual, *ONLY_HOST))]
    if on.name in ("cpu", "reference"):
        return list(own)
    return [c for c in own if c not in ONLY_CPU]
