"""What this card can do at best, measured on it."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from bench.floors import Rates
from bench.gpu_timer import time_step
from bench.timer import Step

GATHER_ROWS, GATHER_WIDTH, GATHER_BAG = 4096, 1024, 32  # 16 MB of float32: stays in the L2 cache
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


def _gather_rate(seconds: float) -> float:
    table = torch.randn(GATHER_ROWS, GATHER_WIDTH, device="cuda")
    index = torch.randint(GATHER_ROWS, (GATHER_ROWS, GATHER_BAG), device="cuda")
    times = time_step(Step(lambda _: gather_sum(table, index)), seconds)
    return index.numel() * table.shape[1] * table.itemsize / times.p50


def _product_rate(seconds: float) -> float:
    x, y = torch.randn(2, PRODUCT, PRODUCT, device="cuda").bfloat16()
    return 2 * PRODUCT**3 / time_step(Step(lambda _: torch.mm(x, y)), seconds).p50


def measure_rates(seconds: float) -> Rates:
    """The three rates, on random data."""
    return Rates(_copy_rate(seconds), _gather_rate(seconds), _product_rate(seconds))
