"""The CUDA kernels of the contrastive losses on the host; their launcher is repeated in torch."""

import math

import simulated
import torch
from torch import Tensor

TOP_EXPONENT = {torch.float16: 14}


def sort_rows(labels: Tensor, present: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Present rows in the order of their labels; the first and one past the last of each class."""
    order = labels.argsort(stable=True)
    if present is not None:
        order = order[present[order]]
    codes = labels[order].contiguous()
    return order, torch.searchsorted(codes, codes), torch.searchsorted(codes, codes, right=True)


def contrastive(
    op: str,
    x: Tensor,  # [L, D]
    labels: Tensor,  # [L]
    present: Tensor | None = None,  # [L]
    temperature: float = 0.5,
    upstream: float = 1.0,
    *,
    lanes: int,
    stripe_rows: int = 1 << 30,
) -> tuple[Tensor, Tensor]:
    """Loss and gradient; H in the dtype of x, products of 16-bit rows with float32 sums."""
    module, is_nt_xent = simulated.module(), op == "nt_xent"
    order, begin, end = sort_rows(labels, present)
    count, width = len(order), x.shape[1]
    others = end - begin - 1
    terms = int(others.sum() if is_nt_xent else (others > 0).sum())
    if terms == 0:
        return torch.zeros(()), torch.zeros_like(x)

    # every row and column count with room for whole vectors; NaN where nothing may be read
    stride, spare = width + 64, count + 64
    rows = torch.full((count, stride), torch.nan)
    rows[:, :width] = x[order].float()
    scaled = torch.full((count, stride), torch.nan)
    inverse, inverse_norm = torch.full((2, spare), torch.nan)
    top = TOP_EXPONENT.get(x.dtype, 0)
    module.scale_rows(
        *(lanes, rows.data_ptr(), count, width, stride, top, scaled.data_ptr()),
        *(inverse.data_ptr(), inverse_norm.data_ptr()),
    )
    units = scaled[:, :width]
    assert torch.equal(units.nan_to_num(), units.to(x.dtype).float().nan_to_num()), "x' is rounded"

    scale = math.log2(math.e) / temperature
    running_max = not 2 * scale + math.log2(len(x) + 1) < 120
    loss = torch.zeros(count, dtype=torch.float64)
    weight, top_of, log2_sum, c = torch.full((4, spare), torch.nan)
    grad = torch.zeros(x.shape)

    def stripes():
        for first in range(0, count, stripe_rows):
            part = units[first : first + stripe_rows]
            dots = torch.full((len(part), spare), torch.nan)
            dots[:, :count] = part @ units.T
            yield (
                dots,
                {
                    "dots": dots.data_ptr(),
                    "stride": spare,
                    "first": first,
                    "rows": len(part),
                    "columns": count,
                    "scale": scale,
                    "class_begin": begin.data_ptr(),
                    "class_end": end.data_ptr(),
                    "inverse": inverse.data_ptr(),
                },
            )

    for _dots, stripe in stripes():
        module.contrast_rows(
            *(lanes, stripe, is_nt_xent, running_max),
            *(t.data_ptr() for t in (loss, weight, top_of, log2_sum, c)),
        )
    h_scale = 1.0
    if x.dtype == torch.float16:
        h_scale = 2.0 ** math.floor(28 - math.log2(max(float(c[:count].max()), 2.0**-60)))
    for dots, stripe in stripes():
        first, size = stripe["first"], stripe["rows"]
        h = dots if x.dtype == torch.float32 else torch.full_like(dots, torch.nan)
        module.contrast_weights(
            *(lanes, stripe, is_nt_xent, running_max),
            *(t.data_ptr() for t in (weight, top_of, log2_sum, h)),
        )
        h = (h[:, :count] * h_scale).to(x.dtype).float()
        g = torch.full((size, stride), torch.nan)
        g[:, :width] = h @ units
        out = torch.full((size, stride), torch.nan)
        module.project_rows(
            *(lanes, g.data_ptr(), scaled[first:].data_ptr(), size, width, stride),
            *(inverse[first:].data_ptr(), inverse_norm[first:].data_ptr()),
            *(1 / (terms * temperature * h_scale), out.data_ptr()),
        )
        grad[order[first : first + size]] = out[:, :width]
    value = (loss.sum() * math.log(2) / terms).float()
    return value, (grad * upstream).to(x.dtype)
