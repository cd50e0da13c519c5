"""Reconstruction loss: the mean over all elements of (h - [Z_1 .. Z_M])^2.

Each modality meets its own columns of h where they lie, so no concatenation exists. The gradient is
2 (h - z) / (N D) to h and minus that to z.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels.arguments import check_parts
from mcr_fast.kernels.config import choose
from mcr_fast.kernels.sums import add_up

AT_ONCE = 4  # modalities of one launch


@triton.jit
def _tile(tile, num_rows, width, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    col_tiles = tl.cdiv(width, BLOCK_D)
    rows = tile // col_tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    cols = tile % col_tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (rows < num_rows)[:, None] & (cols < width)[None, :]
    return rows.to(tl.int64)[:, None], cols[None, :], inside


@triton.jit
def _add_squares(
    z_ptr, h_ptr, partial_ptr, tile, stride, num_rows, width,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The sum of a tile of this modality, if it is one; its number among those that come after."""
    tiles = tl.cdiv(num_rows, BLOCK_R) * tl.cdiv(width, BLOCK_D)
    if (tile >= 0) & (tile < tiles):
        row, col, inside = _tile(tile, num_rows, width, BLOCK_R, BLOCK_D)
        z = tl.load(z_ptr + row * width + col, mask=inside, other=0.0)
        h = tl.load(h_ptr + row * stride + col, mask=inside, other=0.0)
        difference = h.to(tl.float32) - z.to(tl.float32)
        total = tl.sum(tl.sum(difference * difference, 1), 0)
        tl.store(partial_ptr + tl.program_id(0), total)
    return tile - tiles


@triton.jit
def _reconstruction_loss_fwd_kernel(
    reconstruction_ptr,  # [N, D], from the first modality's first column on
    partial_ptr,  # [tiles]
    z0_ptr,  # [N, D_m], and so on; None: there is none
    z1_ptr,
    z2_ptr,
    z3_ptr,
    reconstruction_stride,
    num_rows,
    width0,
    width1,
    width2,
    width3,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    h_ptr, stride = reconstruction_ptr, reconstruction_stride
    tile = _add_squares(
        z0_ptr, h_ptr, partial_ptr, tl.program_id(0), stride, num_rows, width0, BLOCK_R, BLOCK_D
    )
    if z1_ptr is not None:
        h_ptr += width0
        tile = _add_squares(
            z1_ptr, h_ptr, partial_ptr, tile, stride, num_rows, width1, BLOCK_R, BLOCK_D
        )
    if z2_ptr is not None:
        h_ptr += width1
        tile = _add_squares(
            z2_ptr, h_ptr, partial_ptr, tile, stride, num_rows, width2, BLOCK_R, BLOCK_D
        )
    if z3_ptr is not None:
        h_ptr += width2
        _add_squares(z3_ptr, h_ptr, partial_ptr, tile, stride, num_rows, width3, BLOCK_R, BLOCK_D)


@triton.jit
def _store_gradients(
    z_ptr, to_z_ptr, h_ptr, to_h_ptr, tile, stride, num_rows, width, factor,
    BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The gradients of a tile of this modality, if it is one; its number among those after."""
    tiles = tl.cdiv(num_rows, BLOCK_R) * tl.cdiv(width, BLOCK_D)
    if (tile >= 0) & (tile < tiles):
        row, col, inside = _tile(tile, num_rows, width, BLOCK_R, BLOCK_D)
        z = tl.load(z_ptr + row * width + col, mask=inside, other=0.0)
        at = row * stride + col
        h = tl.load(h_ptr + at, mask=inside, other=0.0)
        grad = factor * (h.to(tl.float32) - z.to(tl.float32))
        tl.store(to_h_ptr + at, grad.to(to_h_ptr.dtype.element_ty), mask=inside)
        to_z = (-grad).to(to_z_ptr.dtype.element_ty)
        tl.store(to_z_ptr + row * width + col, to_z, mask=inside)
    return tile - tiles


@triton.jit
def _reconstruction_loss_bwd_kernel(
    grad_ptr,  # []
    reconstruction_ptr,  # [N, D], from the first modality's first column on
    grad_reconstruction_ptr,  # as it
    z0_ptr,  # [N, D_m], and so on; None: there is none
    z1_ptr,
    z2_ptr,
    z3_ptr,
    grad_z0_ptr,  # as the latents
    grad_z1_ptr,
    grad_z2_ptr,
    grad_z3_ptr,
    reconstruction_stride,
    num_rows,
    width0,
    width1,
    width2,
    width3,
    factor,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    h_ptr, to_h_ptr, stride = reconstruction_ptr, grad_reconstruction_ptr, reconstruction_stride
    factor = tl.load(grad_ptr) * factor
    tile = _store_gradients(
        z0_ptr, grad_z0_ptr, h_ptr, to_h_ptr, tl.program_id(0), stride, num_rows, width0, factor,
        BLOCK_R, BLOCK_D,
    )  # fmt: skip
    if z1_ptr is not None:
        h_ptr += width0
        to_h_ptr += width0
        tile = _store_gradients(
            z1_ptr, grad_z1_ptr, h_ptr, to_h_ptr, tile, stride, num_rows, width1, factor,
            BLOCK_R, BLOCK_D,
        )  # fmt: skip
    if z2_ptr is not None:
        h_ptr += width1
        to_h_ptr += width1
        tile = _store_gradients(
            z2_ptr, grad_z2_ptr, h_ptr, to_h_ptr, tile, stride, num_rows, width2, factor,
            BLOCK_R, BLOCK_D,
        )  # fmt: skip
    if z3_ptr is not None:
        h_ptr += width2
        to_h_ptr += width2
        _store_gradients(
            z3_ptr, grad_z3_ptr, h_ptr, to_h_ptr, tile, stride, num_rows, width3, factor,
            BLOCK_R, BLOCK_D,
        )  # fmt: skip


def _arguments(latents: list[Tensor], name: str) -> dict[str, Any]:
    """Up to four tensors by their names, None for those that are not there."""
    given = dict(enumerate(latents))
    return {f"{name}{m}_ptr": given.get(m) for m in range(AT_ONCE)}


class Launch(NamedTuple):
    """Up to four modalities."""

    modalities: slice
    column: int  # their first one
    tiles: int
    arguments: dict[str, Any]


def _launches(latents: list[Tensor]) -> list[Launch]:
    """Those that have anything to do, for M latents [N, D_m]."""
    found: list[Launch] = []
    column = 0
    for m in range(0, len(latents), AT_ONCE):
        some = latents[m : m + AT_ONCE]
        widths = [z.shape[1] for z in some]
        chosen = choose("reconstruction_loss", max(widths))
        rows, columns = chosen.blocks["BLOCK_R"], chosen.blocks["BLOCK_D"]
        tiles = triton.cdiv(len(some[0]), rows) * sum(triton.cdiv(w, columns) for w in widths)
        arguments = {f"width{n}": w for n, w in enumerate(widths + [0] * (AT_ONCE - len(some)))}
        arguments |= {"num_rows": len(some[0]), **_arguments(some, "z"), **chosen.launch()}
        if tiles > 0:
            found.append(Launch(slice(m, m + AT_ONCE), column, tiles, arguments))
        column += sum(widths)
    return found


def reconstruction_loss_fwd(
    latents: list[Tensor],  # M of [N, D_m]
    reconstruction: Tensor,  # [N, D]
) -> Tensor:  # [] float32
    """Tiles leave partial sums, which one program adds up in order, in float64."""
    check_parts(latents, reconstruction)
    h = reconstruction.contiguous()
    launches = _launches([z.contiguous() for z in latents])
    partial = h.new_empty(sum(launch.tiles for launch in launches), dtype=torch.float32)
    done = 0
    for launch in launches:
        _reconstruction_loss_fwd_kernel[(launch.tiles,)](
            reconstruction_ptr=h[:, launch.column :],
            partial_ptr=partial[done:],
            reconstruction_stride=h.shape[1],
            **launch.arguments,
        )
        done += launch.tiles
    mean = h.new_empty((), dtype=torch.float32)
    add_up(partial, None, h.numel(), mean, None, True)
    return mean


def reconstruction_loss_bwd(
    grad: Tensor,  # []
    latents: list[Tensor],  # M of [N, D_m]
    reconstruction: Tensor,  # [N, D]
) -> tuple[list[Tensor], Tensor]:  # M of [N, D_m], [N, D]
    """The difference again, times the upstream gradient: cheaper than reading it back."""
    check_parts(latents, reconstruction)
    h = reconstruction.contiguous()
    given = [z.contiguous() for z in latents]
    grad_h, grad_latents = torch.empty_like(h), [torch.empty_like(z) for z in given]
    for launch in _launches(given):
        _reconstruction_loss_bwd_kernel[(launch.tiles,)](
            grad_ptr=grad.reshape(1),
            reconstruction_ptr=h[:, launch.column :],
            grad_reconstruction_ptr=grad_h[:, launch.column :],
            reconstruction_stride=h.shape[1],
            factor=2 / h.numel(),
            **_arguments(grad_latents[launch.modalities], "grad_z"),
            **launch.arguments,
        )
    return grad_latents, grad_h
