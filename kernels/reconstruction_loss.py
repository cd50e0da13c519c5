"""Reconstruction loss: the mean over all elements of (h - [Z_1 .. Z_M])^2.

Each modality meets its own columns of h where they lie, so no concatenation exists. The gradient is
2 (h - z) / (N D) to h and minus that to z.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mcr_fast.kernels.arguments import check_parts
from mcr_fast.kernels.config import choose


@triton.jit
def _tile(num_rows, width, BLOCK_R: tl.constexpr, BLOCK_D: tl.constexpr):
    col_tiles = tl.cdiv(width, BLOCK_D)
    rows = tl.program_id(0) // col_tiles * BLOCK_R + tl.arange(0, BLOCK_R)
    cols = tl.program_id(0) % col_tiles * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = (rows < num_rows)[:, None] & (cols < width)[None, :]
    return rows.to(tl.int64)[:, None], cols[None, :], inside


@triton.jit
def _reconstruction_loss_fwd_kernel(
    latents_ptr,  # [N, D_m]
    reconstruction_ptr,  # [N, D], from the modality's first column on
    partial_ptr,  # [tiles]
    reconstruction_stride,
    num_rows,
    width,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row, col, inside = _tile(num_rows, width, BLOCK_R, BLOCK_D)
    z = tl.load(latents_ptr + row * width + col, mask=inside, other=0.0)
    h = tl.load(reconstruction_ptr + row * reconstruction_stride + col, mask=inside, other=0.0)
    difference = h.to(tl.float32) - z.to(tl.float32)
    total = tl.sum(tl.sum(difference * difference, 1), 0)
    tl.store(partial_ptr + tl.program_id(0), total)


@triton.jit
def _reconstruction_loss_bwd_kernel(
    grad_ptr,  # []
    latents_ptr,  # [N, D_m]
    reconstruction_ptr,  # [N, D], from the modality's first column on
    grad_latents_ptr,  # [N, D_m]
    grad_reconstruction_ptr,  # [N, D], from the modality's first column on
    reconstruction_stride,
    num_rows,
    width,
    factor,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    row, col, inside = _tile(num_rows, width, BLOCK_R, BLOCK_D)
    z = tl.load(latents_ptr + row * width + col, mask=inside, other=0.0)
    at = row * reconstruction_stride + col
    h = tl.load(reconstruction_ptr + at, mask=inside, other=0.0)
    grad = tl.load(grad_ptr) * factor * (h.to(tl.float32) - z.to(tl.float32))
    tl.store(
        grad_reconstruction_ptr + at,
        grad.to(grad_reconstruction_ptr.dtype.element_ty),
        mask=inside,
    )
    tl.store(
        grad_latents_ptr + row * width + col,
        (-grad).to(grad_latents_ptr.dtype.element_ty),
        mask=inside,
    )


def _launch_tiles(num_rows: int, width: int) -> tuple[int, dict[str, int]]:
    """How many tiles cover a modality, and how they are launched."""
    config = choose("reconstruction_loss", width)
    rows, columns = config.blocks["BLOCK_R"], config.blocks["BLOCK_D"]
    tiles = triton.cdiv(num_rows, rows) * triton.cdiv(width, columns)
    return tiles, config.launch()


def reconstruction_loss_fwd(
    latents: list[Tensor],  # M of [N, D_m]
    reconstruction: Tensor,  # [N, D]
) -> Tensor:  # [] float32
    """Tiles leave partial sums, which one float64 sum adds up in order."""
    check_parts(latents, reconstruction)
    h = reconstruction.contiguous()
    num_rows, total_width = h.shape
    launches = [_launch_tiles(num_rows, z.shape[1]) for z in latents]
    partial = h.new_empty(sum(tiles for tiles, _ in launches), dtype=torch.float32)
    done, column = 0, 0
    for z, (tiles, options) in zip(latents, launches, strict=True):
        if tiles > 0:
            _reconstruction_loss_fwd_kernel[(tiles,)](
                latents_ptr=z.contiguous(),
                reconstruction_ptr=h[:, column:],
                partial_ptr=partial[done:],
                reconstruction_stride=total_width,
                num_rows=num_rows,
                width=z.shape[1],
                **options,
            )
        done += tiles
        column += z.shape[1]
    total = partial.sum(dtype=torch.float64)
    return (total / max(num_rows * total_width, 1)).float()


def reconstruction_loss_bwd(
    grad: Tensor,  # []
    latents: list[Tensor],  # M of [N, D_m]
    reconstruction: Tensor,  # [N, D]
) -> tuple[list[Tensor], Tensor]:  # M of [N, D_m], [N, D]
    """The difference again, times the upstream gradient: cheaper than reading it back."""
    check_parts(latents, reconstruction)
    grad = grad.reshape(1)
    h = reconstruction.contiguous()
    num_rows, total_width = h.shape
    grad_h = torch.empty_like(h)
    grad_latents = []
    column = 0
    for given in latents:
        z = given.contiguous()
        grad_z = torch.empty_like(z)
        grad_latents.append(grad_z)
        tiles, options = _launch_tiles(num_rows, z.shape[1])
        if tiles > 0:
            _reconstruction_loss_bwd_kernel[(tiles,)](
                grad_ptr=grad,
                latents_ptr=z,
                reconstruction_ptr=h[:, column:],
                grad_latents_ptr=grad_z,
                grad_reconstruction_ptr=grad_h[:, column:],
                reconstruction_stride=total_width,
                num_rows=num_rows,
                width=z.shape[1],
                factor=2 / (num_rows * total_width),
                **options,
            )
        column += z.shape[1]
    return grad_latents, grad_h
