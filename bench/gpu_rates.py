"""What this card can do at best, measured on it."""

from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.floors import NARROW, WIDE, rate_figure
from bench.gpu_timer import time_step
from bench.timer import Step

GATHERED, GATHER_BAG = 2**24, 32  # bytes of a table that stays in the L2 cache; rows of a sum
PRODUCT = 8192


@triton.jit
def _gather_sum_kernel(
    table_ptr,  # [rows, width]
    index_ptr,  # [bags, bag]
    out_ptr,  # [bags, width]
    width,
    bag,
    BLOCK: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < width
    total = tl.zeros([BLOCK], tl.float32)
    for k in range(bag):
        row = tl.load(index_ptr + at * bag + k)
        total += tl.load(table_ptr + row * width + columns, mask=inside, other=0.0)
    tl.store(out_ptr + at * width + columns, total, mask=inside)


def gather_sum(table: Tensor, index: Tensor) -> Tensor:  # [rows, width], [bags, bag]
    """The sum of the rows of each bag: reads many, writes few."""
    (bags, bag), width = index.shape, table.shape[1]
    out = table.new_empty(bags, width)
    _gather_sum_kernel[(bags,)](
        table_ptr=table,
        index_ptr=index,
        out_ptr=out,
        width=width,
        bag=bag,
        BLOCK=triton.next_power_of_2(width),
        num_warps=4,
    )
    return out


def _copy_rate(seconds: float) -> float:
    size = int(min(2**31, torch.cuda.mem_get_info()[0] // 4))
    source = torch.empty(size // 4, device="cuda").normal_()
    target = torch.empty_like(source)
    return 2 * source.nbytes / time_step(Step(lambda _: target.copy_(source)), seconds).p50


def _gather_rate(row_bytes: int, seconds: float) -> float:
    rows, width = GATHERED // row_bytes, row_bytes // 4
    table = torch.randn(rows, width, device="cuda")
    index = torch.randint(rows, (rows, GATHER_BAG), device="cuda")
    times = time_step(Step(lambda _: gather_sum(table, index)), seconds)
    return index.numel() * row_bytes / times.p50


def _product_rate(seconds: float) -> float:
    x, y = torch.randn(2, PRODUCT, PRODUCT, device="cuda").bfloat16()
    return 2 * PRODUCT**3 / time_step(Step(lambda _: torch.mm(x, y)), seconds).p50


def measure_rates(seconds: float) -> Iterator[dict[str, str]]:
    """Each rate as a figure, on random data."""
    yield rate_figure("copy", _copy_rate(seconds))
    yield rate_figure("gather", _gather_rate(WIDE, seconds))
    yield rate_figure("gather_narrow", _gather_rate(NARROW, seconds))
    yield rate_figure("bfloat16", _product_rate(seconds))
