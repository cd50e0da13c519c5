"""The CPU's kernels of the contrastive losses by blocks, and what the three ops are to torch."""

from dataclasses import replace

import pytest
import torch
from blocks import (
    LOSSES,
    OPS,
    SHAPES,
    bound,
    empty_blocks,
    make_block,
    merged,
    not_a_number,
    unmarked,
)
from contrastive import needs_library
from divergences import DTYPES, assert_same_bits, on_capability, on_threads, with_dirty_memory
from suite.backends import CAPABILITIES
from tiers import sample
from torch._subclasses.fake_tensor import FakeTensorMode

from mcr_fast.ops import _contrastive_blocks as ops

pytestmark = needs_library
EACH_LOSS = pytest.mark.parametrize("loss", LOSSES)
EACH_OP = pytest.mark.parametrize("op", OPS)


@EACH_LOSS
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("temperature", sample([0.5, 0.03, 0.01], 2))
@pytest.mark.parametrize("shape", SHAPES)
def test_bound(shape, temperature, dtype, loss):
    *sizes, offset = SHAPES[shape]
    for marked in (False, True):
        given = {"marked": marked, "dtype": dtype, "temperature": temperature}
        bound(make_block(loss, *sizes, offset=offset, **given), "cpu")


@EACH_LOSS
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize(
    ("sizes", "offset", "temperature"),
    sample(
        [
            ((300, 2100, 64, 40), 1100, 0.5),
            ((520, 1030, 40, 300), -1, 0.02),
            ((260, 1500, 33, 2), 0, 0.1),
        ],
        2,
    ),
)
def test_several_stripes_and_panels(sizes, offset, temperature, dtype, loss):
    given = {"marked": offset >= 0, "dtype": dtype, "temperature": temperature}
    bound(make_block(loss, *sizes, offset=offset, **given), "cpu")


@EACH_LOSS
@pytest.mark.parametrize("capability", CAPABILITIES)
@pytest.mark.parametrize("temperature", sample([0.5, 0.01], 2))
def test_instruction_sets(capability, temperature, loss):
    try:
        with on_capability(capability):
            for dtype in DTYPES:
                given = {"dtype": dtype, "temperature": temperature, "marked": True}
                bound(make_block(loss, 70, 130, 37, 6, offset=50, **given), "cpu")
    except RuntimeError as error:
        pytest.skip(str(error))


@EACH_LOSS
@pytest.mark.parametrize("temperature", [0.5, 0.01])
@pytest.mark.parametrize("offset", [-1, 20])
def test_unmarked_rows_do_not_matter(offset, temperature, loss):
    given = {"marked": True, "temperature": temperature}
    unmarked(make_block(loss, 40, 90, 21, 4, offset=offset, **given), "cpu")


@EACH_LOSS
@pytest.mark.parametrize("temperature", [0.5, 0.01])
@pytest.mark.parametrize("offset", [-1, 2])
def test_nan_comes_out(offset, temperature, loss):
    not_a_number(make_block(loss, 9, 20, 5, 3, offset=offset, temperature=temperature), "cpu")


@EACH_LOSS
@pytest.mark.parametrize("temperature", [0.5, 0.01])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_two_blocks_are_one(dtype, temperature, loss):
    given = {"dtype": dtype, "temperature": temperature, "marked": True}
    merged(make_block(loss, 30, 90, 21, 4, offset=50, **given), "cpu", 45)


def test_empty():
    empty_blocks("cpu")
    with FakeTensorMode() as mode:
        fakes = make_block("sup_con", 3, 6, 0, 2).map(mode.from_tensor).run("cpu")
    assert [tuple(x.shape) for x in fakes] == [(3,), (3,), (3,), (0,), (3, 0)]


@EACH_LOSS
def test_same_bits_again(loss):
    block = make_block(loss, 300, 1100, 40, 9, offset=5, marked=True)
    expected = block.run("cpu")
    for again in with_dirty_memory(lambda: block.run("cpu")):
        assert_same_bits(again, expected)
    with on_threads(1):
        alone = block.run("cpu")
    for ours, theirs in zip(alone, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


@EACH_LOSS
def test_any_layout(loss):
    block = make_block(loss, 20, 50, 12, 4, offset=3, marked=True)
    expected = block.run("cpu")
    apart = block.map(lambda x: x.repeat_interleave(2, -1)[..., ::2])
    assert_same_bits(apart.run("cpu"), expected)


@EACH_OP
@EACH_LOSS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_opcheck(op, dtype, loss):
    for marked in (False, True):
        block = make_block(loss, 6, 11, 4, 3, offset=2, marked=marked, dtype=dtype)
        torch.library.opcheck(getattr(torch.ops.mcr_fast, op).default, block.of(op))


@EACH_OP
@EACH_LOSS
def test_fakes_compiled_and_mapped(op, loss):
    run = getattr(ops, op)
    block = make_block(loss, 6, 11, 4, 3, offset=2)
    eager = run(*block.of(op))
    torch._dynamo.reset()
    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)(*block.of(op))
    given = block.of(op)
    mapped = torch.func.vmap(lambda x: run(x, *given[1:]))(torch.stack([block.rows] * 2))
    with FakeTensorMode() as mode:
        fake = run(*block.map(mode.from_tensor).of(op))
    every = [x if isinstance(x, tuple) else (x,) for x in (eager, compiled, fake, mapped)]
    for expected, got, shape, both in zip(*every, strict=True):
        assert torch.equal(expected, got)
        assert (shape.shape, shape.dtype) == (expected.shape, expected.dtype)
        assert_same_bits(both, [expected, expected])


@EACH_OP
def test_no_gradient_is_lost(op):
    block = make_block("nt_xent", 6, 11, 4, 3)
    for side in ("rows", "columns"):
        x = getattr(block, side).clone().requires_grad_()
        given = replace(block, **{side: x}).of(op)
        for run in (getattr(ops, op), getattr(torch.ops.mcr_fast, op).default):
            with pytest.raises(RuntimeError, match=f"{op} is not differentiable"):
                run(*given)
            with torch.no_grad():
                run(*given)
        first = lambda x, op=op: torch.cat([*getattr(ops, op)(x, *block.of(op)[1:])]).sum()  # noqa: E731
        with pytest.raises(RuntimeError, match="is not differentiable"):
            torch.func.grad(first)(block.rows)
    x = block.rows.clone().requires_grad_()
    made = getattr(ops, op)(*replace(block, rows=x).of(op), backend="reference")
    assert (made if op != "contrastive_pairs" else made[0]).requires_grad


def test_backends_by_name():
    block = make_block("nt_xent", 6, 11, 4, 3).of("contrastive_sums")
    with pytest.raises(RuntimeError, match="has no cuda kernel; use backend='triton' or None"):
        ops.contrastive_sums(*block, backend="cuda")
    with pytest.raises(ValueError, match="backend must be None or one of"):
        ops.contrastive_sums(*block, backend="gpu")


WRONG = {
    "row_codes must have shape [6], got [5]": {"row_codes": torch.zeros(5, dtype=torch.int64)},
    "column_codes must be int64": {"column_codes": torch.zeros(11)},
    "row_marks must be bool": {"row_marks": torch.zeros(6)},
    "column_marks must have shape [11]": {"column_marks": torch.ones(6, dtype=torch.bool)},
    "columns must have shape [any, 4], got [11, 3]": {"columns": torch.zeros(11, 3)},
    "rows and columns must have one dtype": {"columns": torch.zeros(11, 4).double()},
    "rows must be a float dtype": {"rows": torch.zeros(6, 4).long()},
    "offset must be -1, or leave room for 6 rows among 11 columns, got 6": {"offset": 6},
    "among 11 columns, got -2": {"offset": -2},
    f"among 11 columns, got {2**63 - 1}": {"offset": 2**63 - 1},
    "loss must be nt_xent or sup_con, got jsd": {"loss": "jsd"},
    "temperature must be above 0, got 0": {"temperature": 0.0},
    "temperature must be above 0, got nan": {"temperature": float("nan")},
}
OF_STATS = {
    "log_sum must have shape [6], got [5]": {"log_sum": torch.zeros(5)},
    "log_sum must be float32": {"log_sum": torch.zeros(6).double()},
    "row_stats must have shape [2, 6]": {"row_stats": torch.zeros(6, 2)},
    "row_stats must be float32": {"row_stats": torch.zeros(2, 6).half()},
    "column_stats must have shape [2, 11], got [2, 6]": {"column_stats": torch.zeros(2, 6)},
}


@pytest.mark.parametrize("message", [*WRONG, *OF_STATS])
def test_wrong_arguments(message):
    change = (WRONG | OF_STATS)[message]
    block = replace(make_block("nt_xent", 6, 11, 4, 3), **change)
    refused = 0
    for op in OPS:
        reads = message in WRONG or any(
            getattr(block, name) is x for name in change for x in block.of(op)
        )
        if not reads:
            continue
        refused += 1
        with pytest.raises(RuntimeError) as error:
            getattr(torch.ops.mcr_fast, op).default(*block.of(op))
        assert message in str(error.value)
    assert refused


def test_sup_con_takes_no_sums():
    block = make_block("sup_con", 6, 11, 4, 3)
    expected = ops.contrastive_pairs(*block.of("contrastive_pairs"))
    none = replace(block, log_sum=torch.empty(0))
    assert_same_bits(ops.contrastive_pairs(*none.of("contrastive_pairs")), expected)
