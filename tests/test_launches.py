"""How many kernels a step starts on a GPU, and that they are counted right."""

import os

import pytest
import torch
from launches import CASES, counting, refusal, row

from bench import host_time, launches
from bench.__main__ import main
from bench.case import Case
from bench.registry import STEMS
from mcr_fast.functional import nt_xent, permuted_divergence

interpreted = pytest.mark.process("interpreted")
emulated = pytest.mark.process("emulated")

# Launches of a forward without gradient, one with it, and a backward: no more than these.
TRITON = {
    # of a small step one is the 0 of the third term
    "mcr_loss": {"small": (8, 8, 4), "large": (17, 19, 4)},
    # of a small step 3 are the op's own; the others are the sum and the sign of the loss
    "permuted_divergence": {"small": (4, 4, 2), "large": (8, 10, 2), "cyclic": (8, 10, 2)},
    "row_divergence": {"small": (2, 1, 1), "large": (2, 3, 1)},
    # of a small step one joins the modalities
    "nt_xent": {"small": (3, 3, 1), "large": (8, 12, 1), "panels": (14, 93, 1)},
    "sup_con": {"small": (3, 3, 1), "large": (8, 12, 1)},
    "reconstruction_loss": {"small": (2, 2, 1), "large": (2, 2, 1)},
}
CUDA = {
    # large: of a band's pairs four kernels, and two that return where these left nothing
    "mcr_loss": {"small": (7, 7, 1), "large": (19, 21, 5)},
    "permuted_divergence": {"small": (4, 4, 2), "cyclic": (9, 11, 2)},  # 2 are of the loss
    # 3 are the op's own; the other joins the modalities
    "nt_xent": {"small": (3, 3, 1)},
    "sup_con": {"small": (3, 3, 1)},
}
BOUNDS = {"triton": TRITON, "cuda": CUDA}
PARTS = ("forward", "forward_with_gradient", "backward")


SLOW = ("panels",)


def sizes_of(*backends):
    """Parameters (backend, op, size), each in the process that counts the backend's launches."""
    kinds = {"triton": interpreted, "cuda": emulated}
    for backend in backends:
        for op, sizes in BOUNDS[backend].items():
            for size in sizes:
                marks = [kinds[backend], *([pytest.mark.slow] if size in SLOW else [])]
                yield pytest.param(backend, op, size, marks=marks)


@pytest.mark.parametrize(("backend", "op", "size"), list(sizes_of("triton", "cuda")))
def test_no_more_launches(backend, op, size):
    bounds = BOUNDS[backend][op][size]
    found = row(backend, op, size)
    counts = [found[part].total() for part in PARTS]
    more = [part for part, n, most in zip(PARTS, counts, bounds, strict=True) if n > most]
    assert not more, f"{counts} launches, at most {bounds} so far: {found}"


@pytest.mark.parametrize("op", ["mcr_loss", "permuted_divergence"])
def test_fewer_launches_than_plain_torch(op):
    found = row("eager", op, "small")
    step = found["forward_with_gradient"].total() + found["backward"].total()
    for bounds in (TRITON, CUDA):
        assert sum(bounds[op]["small"][1:]) < step


X, W = torch.ones(3, 4), torch.ones(5, 4)


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (lambda: X.view(4, 3).mT[None].expand(2, -1, -1).detach()[0, 1:], {}),
        (lambda: (X.to(torch.float32), X.contiguous(), X.reshape(12), X.flatten()), {}),
        (lambda: torch.empty_like(X), {}),
        (lambda: X.sum(), {"sum": 1}),
        (lambda: torch.zeros(3), {"zero_": 1}),
        (lambda: torch.ones_like(X), {"fill_": 1}),
        (lambda: (X.to(torch.bfloat16), X.clone(), X.mT.contiguous()), {"copy_": 3}),
        (lambda: torch.nn.functional.linear(X, W, W[:, 0]), {"addmm": 1}),
        (lambda: torch.stack([X, X]).softmax(-1).mul_(2), {"cat": 1, "_softmax": 1, "mul_": 1}),
        (lambda: X.sum().item(), {"sum": 1, "_local_scalar_dense": 1}),
    ],
)
def test_kernels_of_torch(call, expected):
    with counting("eager") as count:
        assert count(call) == {f"aten::{name}": number for name, number in expected.items()}
        assert count(call).total() == sum(expected.values()), "the second time"


def test_kernels_of_a_backward():
    x = X.clone().requires_grad_()
    loss, above = (2 * x).sum(), torch.ones(())
    with counting("eager") as count:
        found = count(lambda: torch.autograd.grad(loss, x, above))
    assert found == {"aten::mul": 1}, "the gradient of a sum is a view"


ROWS = torch.eye(4, 6), torch.arange(4) // 2  # each has a positive and two negatives, all as near
TRITON_KERNELS = ("_small_sums_kernel", "_small_gradient_kernel")
LOSS = torch.tensor(3.0).log()


@pytest.mark.parametrize(
    ("backend", "argument", "expected"),
    [
        pytest.param("triton", "triton", dict.fromkeys(TRITON_KERNELS, 1), marks=interpreted),
        pytest.param(
            "cuda", "cpu", {"small_rows_kernel": 1, "small_loss_kernel": 1}, marks=emulated
        ),
    ],
    ids=["triton", "cuda"],
)
def test_kernels_of_a_backend(backend, argument, expected):
    def run():
        return nt_xent(*ROWS, backend=argument)

    before = dict(os.environ)
    with counting(backend) as count:
        assert count(run) == expected
        assert count(run) == expected, "the first ones are forgotten"
    assert dict(os.environ) == before
    torch.testing.assert_close(run(), LOSS, msg="kernels run again")


@pytest.mark.parametrize(
    "backend", [pytest.param("triton", marks=interpreted), pytest.param("cuda", marks=emulated)]
)
def test_nothing_is_left_of_a_count_that_fails(backend):
    before = dict(os.environ)
    with pytest.raises(ZeroDivisionError), counting(backend) as count:
        count(lambda: 1 / 0)
    assert dict(os.environ) == before
    argument = "cpu" if backend == "cuda" else backend
    torch.testing.assert_close(nt_xent(*ROWS, backend=argument), LOSS)


def test_values_are_not_read():
    """As on a GPU, where a check that reads them would wait."""
    table = torch.zeros(1, 4, dtype=torch.int64)  # no permutation
    x = torch.randn(2, 4, 3)
    with pytest.raises(ValueError, match="must be a permutation"):
        permuted_divergence(x, table, backend="reference")
    with counting("eager") as count:
        count(lambda: permuted_divergence(x, table, backend="reference"))
    with pytest.raises(ValueError, match="must be a permutation"):
        permuted_divergence(x, table, backend="reference")


def test_every_op_is_counted():
    assert CASES.keys() == set(STEMS)
    for backend, bounds in BOUNDS.items():
        taken = {
            op: [size for size in sizes if not refusal(backend, Case(op, **sizes[size]))]
            for op, sizes in CASES.items()
        }
        counted = {op: list(sizes) for op, sizes in bounds.items()}
        assert counted == {op: sizes for op, sizes in taken.items() if sizes}


def test_table_and_names():
    parts = {"forward": {"a": 1}, "forward_with_gradient": {"a": 1, "b": 2}, "backward": {}}
    found = {"op": "nt_xent", "case": "L64", "backend": "cuda"} | parts
    skipped = {"op": "nt_xent", "case": "L32768", "backend": "eager", "skipped": "too large"}
    lines = launches.table([found, skipped]).splitlines()
    assert [line.split() for line in lines[2:]] == [
        ["nt_xent", "L64", "cuda", "1", "3", "0", "3"],
        ["nt_xent", "L32768", "eager", "too", "large"],
    ]
    assert launches.names([found]).splitlines()[1].endswith(": 2 b, 1 a")


@pytest.mark.slow
def test_the_command_prints_a_table_of_what_there_is(capfd, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")  # no compiler
    chosen = ["--backend", "cuda", "--backend", "eager", "--op", "reconstruction_loss"]
    assert main(["launches", *chosen, "-v"]) == 0
    printed = capfd.readouterr()
    assert printed.err.strip() == "cuda: no C++ compiler"
    lines = printed.out.splitlines()
    small = next(line.split() for line in lines if "N32_D512" in line)
    assert small == ["reconstruction_loss", "N32_D512_M2_float32", "eager", "2", "2", "2", "4"]
    assert any(line.endswith(" forward: 1 aten::cat, 1 aten::mse_loss") for line in lines)


def test_the_command_fails_if_nothing_is_counted(capfd, monkeypatch):
    monkeypatch.setattr(launches, "counted", lambda backend, ops: ([], f"no {backend} here"))
    assert main(["launches", "--backend", "triton", "--op", "nt_xent"]) == 1
    assert capfd.readouterr().err == "triton: no triton here\n"


def test_host_time(monkeypatch):
    monkeypatch.setattr(host_time, "ROUNDS", 2)
    monkeypatch.setattr(host_time, "CALLS", 3)
    threads = torch.get_num_threads()
    times = host_time.host_time()
    assert [0 < least <= median for least, median in times.values()] == [True, True]
    assert torch.get_num_threads() == threads
