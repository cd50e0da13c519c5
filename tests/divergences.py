"""What the tests of the two divergences share: inputs, the bound, and tricks with the process."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace

import torch
from tolerances import check_gradient, check_value, eps
from torch import Tensor

from mcr_fast import env
from mcr_fast._checks import subset_bits
from mcr_fast.ops.permuted_divergence import permuted_divergence
from mcr_fast.ops.row_divergence import row_divergence

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
DEFAULTS = {
    "strategy": "greedy",
    "clean_path": "shared",
    "divergence": "jsd",
    "exclude": "none",
}


class Inputs:
    """Tensors that an op takes, the first two differentiable."""

    def tensors(self) -> list[Tensor | None]:
        return [getattr(self, f.name) for f in fields(self)]

    def map(self, function: Callable[[Tensor], Tensor]) -> "Inputs":
        changed = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: None if t is None else function(t) for k, t in changed.items()})

    def to(self, dtype: torch.dtype) -> "Inputs":
        return self.map(lambda t: t.to(dtype) if t.is_floating_point() else t)


@dataclass
class Batch(Inputs):
    """As permuted_divergence takes it."""

    contributions: Tensor  # [M, N, C]
    bias: Tensor | None = None  # [C]
    order: Tensor | None = None  # [N]
    donors: Tensor | None = None  # [1 or M, K] shifts, or [1 or M, K, N] rows
    labels: Tensor | None = None  # [N]
    present: Tensor | None = None  # [N, M]
    sample_weight: Tensor | None = None  # [N]


@dataclass
class Rows(Inputs):
    """As row_divergence takes it."""

    perturbed: Tensor  # [R, C]
    clean: Tensor  # [N, C]
    rows: Tensor  # [R]
    row_weight: Tensor | None = None  # [R]


def make_batch(
    num_modalities: int,
    num_rows: int,
    num_classes: int,
    scheme: str = "cyclic",
    *,
    own: bool = False,
    count: int = 3,
    scale: float = 1.5,
    bias: bool = True,
    present: bool = False,
    weighted: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Batch:
    """A batch of M modalities, N rows and C classes, with K = count permutations of a scheme."""
    g = torch.Generator().manual_seed(seed)
    m, n, c = num_modalities, num_rows, num_classes

    def normal(*shape):
        return (scale * torch.randn(*shape, generator=g, dtype=torch.float64)).to(dtype)

    sets = m if own else 1
    order = donors = None
    if scheme == "table":
        keys = torch.rand(sets, count, n, generator=g)
        donors = keys.argsort(-1)
    elif scheme == "cyclic":
        order = torch.randperm(n, generator=g)
        shifts = torch.rand(sets, max(n - 1, 0), generator=g).argsort(-1) + 1
        donors = shifts[:, :count]
    elif scheme == "window":  # cyclic, shifts as they are drawn: one after the other
        order = torch.randperm(n, generator=g)
        first = torch.randint(n - 1, (sets, 1), generator=g)
        donors = (first + torch.arange(count)) % (n - 1) + 1
    weight = (torch.rand(n, generator=g) * 3).round() / 2  # a sixth of them 0
    return Batch(
        normal(m, n, c),
        normal(c) if bias else None,
        order,
        donors,
        torch.randint(3, (n,), generator=g) * 10**12 - 7,
        torch.rand(n, m, generator=g) > 0.25 if present else None,
        weight.to(dtype) if weighted else None,
    )


def paired_off(x: Batch, i: int, j: int) -> Batch:
    """x with a table in which the rows i and j give to each other only."""
    num_rows = x.contributions.shape[1]
    rest = torch.tensor([r for r in range(num_rows) if r not in (i, j)])
    table = torch.empty(num_rows, dtype=torch.int64)
    table[rest] = rest.roll(5)
    table[i], table[j] = j, i
    x.donors = table.expand_as(x.donors)
    return x


def make_rows(
    num_perturbed: int,
    num_clean: int,
    num_classes: int,
    *,
    scale: float = 2.0,
    weighted: bool = False,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Rows:
    """Clean rows [N, C], some without a perturbed row, and R perturbed ones in any order."""
    g = torch.Generator().manual_seed(seed)
    r, n, c = num_perturbed, num_clean, num_classes
    clean = scale * torch.randn(n, c, generator=g, dtype=torch.float64)
    perturbed = scale * torch.randn(r, c, generator=g, dtype=torch.float64)
    rows = torch.randint(max(n, 1), (r,), generator=g)
    weight = (torch.rand(r, generator=g) * 3).round() / 2
    return Rows(perturbed.to(dtype), clean.to(dtype), rows, weight.to(dtype) if weighted else None)


def options_of(x: Inputs, **options) -> dict:
    """All options of the op, those not given by their defaults."""
    if isinstance(x, Rows):
        return {"divergence": "jsd"} | options
    subsets = options.pop("subsets", "all")
    return {"subsets": subset_bits(subsets, len(x.contributions))} | DEFAULTS | options


def unequal(x: Batch, subsets: str = "all") -> Tensor:
    """An upstream gradient that makes the backward compute the gradient again."""
    count = len(options_of(x, subsets=subsets)["subsets"])
    return torch.linspace(-1, 2, count, dtype=torch.float64)


def call(x: Inputs, backend: str = "cpu", **options) -> Tensor:
    op = row_divergence if isinstance(x, Rows) else permuted_divergence
    return op(*x.tensors(), **options_of(x, **options), backend=backend)


def run(
    x: Inputs, backend: str = "cpu", upstream: Tensor | float = 1.0, **options
) -> tuple[Tensor, ...]:
    """The value, and the gradients to the first two tensors where they are given."""
    first, second, *rest = x.tensors()
    leaves = [t.detach().requires_grad_() for t in (first, second) if t is not None]
    value = call(type(x)(*leaves, *[None] * (2 - len(leaves)), *rest), backend, **options)
    upstream = torch.as_tensor(upstream).to(value).expand_as(value)
    # an option can leave the bias without any gradient
    grads = torch.autograd.grad(value, leaves, upstream, allow_unused=True, materialize_grads=True)
    return value.detach(), *grads


def check(
    x: Inputs,
    upstream: Tensor | float = 1.0,
    case: object = "",
    threads: int = 1,
    backend: str = "cpu",
    ours: tuple[Tensor, ...] | None = None,
    coherent: bool = False,
    **options,
) -> None:
    """A backend's kernels, or `ours`, against the reference in float64, value and gradients."""
    name = "row_divergence" if isinstance(x, Rows) else "permuted_divergence"
    if ours is None:
        with on_threads(threads):
            ours = run(x, backend, upstream, **options)
    plain = run(x, "reference", upstream, **options)
    truth = run(x.to(torch.float64), "reference", upstream, **options)
    shapes = [list(t.shape) for t in x.tensors() if t is not None]
    case = f"{case} {x.tensors()[0].dtype} {shapes} {options}"
    assert (ours[0] >= 0).all(), f"{case}: a divergence of {ours[0]}"
    size = logit_size(x)
    unit = eps(ours[0].dtype)
    # |dD/dw| is at most sqrt(2 D), and logits are known to eps of their own size. The reference has
    # eps of the size in D itself, so that in float64 it is no better known than that.
    slope = (2 * truth[0].clamp(min=0)).sqrt() + unit * (1 + size)
    if ours[0].dtype == torch.float64:
        slope = torch.ones_like(slope)
    check_value(name, ours[0], truth[0], plain[0], growth=(1 + size) * slope, case=case)
    # what one row adds: a row's gradients to several modalities can cancel
    rows = max(len(x.rows) if isinstance(x, Rows) else x.contributions.shape[1], 1)
    floor = float(slope.max()) * float(torch.as_tensor(upstream).abs().max()) / rows
    for results in zip(ours[1:], truth[1:], plain[1:], strict=True):
        check_gradient(name, *results, growth=size, floor=floor, coherent=coherent, case=case)


def logit_size(x: Inputs) -> float:
    """The largest logit there can be."""
    if isinstance(x, Rows):
        return max([float(t.abs().max()) for t in (x.perturbed, x.clean) if t.numel()], default=0)
    if not x.contributions.numel():
        return 0.0
    size = float(x.contributions.double().abs().amax((1, 2)).sum())
    return size if x.bias is None else size + float(x.bias.abs().max())


def assert_same_bits(ours: Sequence[Tensor], theirs: Sequence[Tensor], case: object = "") -> None:
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), f"{case} result {k}: off by {(a - b).abs().max()}"


@contextlib.contextmanager
def on_capability(name: str) -> Iterator[None]:
    active = env.cpu_capability()
    env.cpu_capability(name)
    try:
        yield
    finally:
        env.cpu_capability(active)


@contextlib.contextmanager
def on_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


_M_PERTURB = -6  # of glibc's mallopt: memory handed out holds the complement of this byte


def with_dirty_memory(function: Callable[[], Sequence[Tensor]]) -> list[Sequence[Tensor]]:
    """What `function` returns when new memory holds NaN, and huge numbers of either sign."""
    junk = [torch.full((size,), torch.nan) for size in range(1, 4000, 13)]
    del junk
    results = [_in_new_thread(function)]
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for byte in (0x80, 0x01):
            mallopt(_M_PERTURB, byte)
            try:
                results.append(_in_new_thread(function))
            finally:
                mallopt(_M_PERTURB, 0)
    return results


def _in_new_thread(function: Callable[[], Sequence[Tensor]]) -> Sequence[Tensor]:
    """Called where no workspace is left over from an earlier call."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function).result()
