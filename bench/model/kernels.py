"""The kernels that the model knows, a line or a few for each: add one where a kernel is added.

A kernel that is launched and has no line counts as a launch. `Loop` says where its instructions are
counted: the shortest way around a loop that has the marks of one turn. `elements` are what one turn
serves; of CUDA C++ the instance is the narrowest one that takes the classes of a case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from bench.case import Case
from bench.gpu.sizes import CONTRASTIVE
from bench.model.figures import Work
from bench.model.sass import Code

Tile = Mapping[str, int]  # numbers of a kernel's instance
Count = Callable[[Case, Tile], float]


def nothing(case: Case, tile: Tile) -> float:
    return 0.0


@dataclass(frozen=True)
class Loop:
    """Where a kernel's instructions are counted."""

    marks: Mapping[str, float]  # instruction -> how many an element has
    turn: Callable[[Tile], float]  # elements of a thread in one turn
    elements: Count  # of a step, with what is padded
    around: Mapping[str, float] = field(default_factory=dict)  # marks of what is around that loop,
    turns: int = 1  # whose instructions are shared by so many turns


@dataclass(frozen=True)
class Kernel:
    """What one kernel does in all launches of a step."""

    loop: Loop | None = None
    hbm: Count = nothing  # bytes
    l2: Count = nothing
    flops: Count = nothing
    source: str = ""  # of CUDA C++, under csrc
    instances: Callable[[Case], str] = field(default=lambda case: "")  # regex of mangled names


def tile_turn(tile: Tile) -> float:
    """Triton: a tile of rows (or permutations) by classes, over the threads of its warps."""
    return tile.get("BLOCK_R", tile.get("BLOCK_K", 1)) * tile["BLOCK_C"] / (32 * tile["WARPS"])


def width(case: Case, tile: Tile) -> int:
    """Classes of a row with its padding."""
    team = tile.get("BLOCK_C") or tile.get("lanes", 1) * tile.get("steps", 1)
    return -(-case.C // team) * team


def pair_classes(case: Case, tile: Tile) -> float:
    """(pair, class, subset)."""
    return case.num_pairs * width(case, tile)


def padded(count: int, whole: int) -> int:
    return -(-count // whole) * whole


def bands(case: Case) -> int:
    """Blocks of 32 rows by as many shifts, in both subsets."""
    shifts = case.N - 1 if case.donors == "exhaustive" else case.K
    return case.M * padded(case.N, 32) * padded(shifts, 32) // 32**2


def band_classes(whole: int) -> Count:
    """(pair, class, subset) of whole blocks, in so many classes at once."""
    return lambda case, tile: 32.0**2 * bands(case) * padded(case.C, whole)


def band_reads(arrays: int) -> Count:
    """Bytes of so many arrays of 63 donors and two of 32 rows, for each block."""
    return lambda case, tile: 4.0 * bands(case) * case.C * (63 * arrays + 64)


def band_sums(case: Case, tile: Tile) -> float:
    """Bytes of the sums that one kernel of a band leaves for the next: 2 of 32 rows, one of 63."""
    return 4.0 * bands(case) * case.C * 127


def inputs(case: Case, tile: Tile) -> float:
    """Bytes of [M, N, C] in float32."""
    return 4.0 * case.M * case.N * case.C


def gathered(case: Case, tile: Tile) -> float:
    """Donors' rows from the L2 cache: each pair's, or a quarter where neighbours share them."""
    shared = 1 if case.donors == "uniform" else 4
    return 4.0 * case.num_pairs * case.C / shared


def times(factor: float, count: Count) -> Count:
    """So many of another count."""
    return lambda case, tile: factor * count(case, tile)


def logits(case: Case, tile: Tile) -> float:
    """Multiplications and additions of all similarities once: 2 L^2 D."""
    return 2.0 * case.L**2 * case.D


def tiles_read(case: Case, tile: Tile) -> float:
    """Bytes that tiles of all similarities read: rows of both sides, each tile all of the width."""
    sides = 1 / tile["BLOCK_M"] + 1 / tile["BLOCK_N"]
    return case.L**2 * case.D * case.torch_dtype.itemsize * sides


def matrix(case: Case, tile: Tile) -> float:
    """Bytes of [L, L] in the dtype of the rows."""
    return float(case.L**2 * case.torch_dtype.itemsize)


def embeddings(case: Case, tile: Tile) -> float:
    """Bytes of [L, D] in the dtype of the rows."""
    return float(case.L * case.D * case.torch_dtype.itemsize)


def gradient(case: Case, tile: Tile) -> float:
    """Bytes of [L, D] in float32."""
    return 4.0 * case.L * case.D


def perturbed_rows(case: Case, tile: Tile) -> float:
    """Elements of row_divergence's inputs."""
    return float((case.num_pairs + case.N) * case.C)


def rows_and_notes(case: Case, tile: Tile) -> float:
    """Inputs in their dtype, 16 bytes of each perturbed row, clean rows' gradient in float32."""
    kept = 16.0 * case.num_pairs + 4.0 * case.N * case.C
    return perturbed_rows(case, tile) * case.torch_dtype.itemsize + kept


def clean_reads(case: Case, tile: Tile) -> float:
    """The clean row of each perturbed one."""
    return float(case.num_pairs * case.C * case.torch_dtype.itemsize)


def rows_of_notes(case: Case, tile: Tile) -> float:
    """The same read, less the clean rows; gradients in the dtype of the inputs written."""
    return rows_and_notes(case, tile) + perturbed_rows(case, tile) * case.torch_dtype.itemsize


def scaled(case: Case, tile: Tile) -> float:
    """A unit gradient in float32 read, a gradient in the dtype of the inputs written."""
    e = case.torch_dtype.itemsize
    if case.op in ("nt_xent", "sup_con"):
        return float(case.L * case.D * (4 + e))
    return inputs(case, tile) * (4 + e) / 4


def reconstructed(tensors: float) -> Count:
    """So many tensors of all latents."""
    return lambda case, tile: tensors * case.L * case.D * case.torch_dtype.itemsize


TRITON_PAIRS = Loop({"MUFU.LG2": 1}, tile_turn, pair_classes)

KERNELS: dict[str, Kernel] = {
    # permuted_divergence, Triton
    "_lay_out_kernel": Kernel(hbm=times(2, inputs)),
    "_own_side_kernel": Kernel(TRITON_PAIRS, hbm=times(2, inputs), l2=gathered),
    "_donor_side_kernel": Kernel(TRITON_PAIRS, hbm=times(3, inputs), l2=gathered),
    "_scale_or_take_kernel": Kernel(hbm=scaled),
    # permuted_divergence, CUDA C++: a band
    "lay_out_centered_kernel": Kernel(hbm=times(3, inputs)),
    "band_masses_kernel": Kernel(
        Loop({"FFMA": 1}, lambda tile: 256, band_classes(64)),
        l2=band_reads(1),
        source="permuted_divergence/cuda/band_masses.cu",
        instances=lambda case: "band_masses_kernel",
    ),
    "band_terms_kernel": Kernel(
        Loop(
            {"MUFU.LG2": 1, "FFMA": 4, "FMUL": 2},
            lambda tile: 64,
            band_classes(8),
            {"MUFU.LG2": 1, "MUFU.RCP": 1 / 16},
            turns=4,
        ),
        l2=band_reads(2),
        hbm=band_sums,
        source="permuted_divergence/cuda/band_terms.cu",
        instances=lambda case: "band_terms_kernelILb1E",
    ),
    "band_centre_kernel": Kernel(
        Loop(
            {"FFMA": 2},
            lambda tile: 64,
            band_classes(8),
            {"FFMA": 2.2, "LDG": 1 / 2},
            turns=4,
        ),
        l2=band_reads(1),
        hbm=lambda case, tile: band_sums(case, tile) + 2 * inputs(case, tile),
        source="permuted_divergence/cuda/band_centre.cu",
        instances=lambda case: "band_centre_kernel",
    ),
    "scale_grads_kernel": Kernel(hbm=scaled),
    # nt_xent and sup_con, Triton
    "_scale_rows_kernel": Kernel(hbm=times(2, embeddings)),
    "_exp_sums_kernel": Kernel(flops=times(0.5, logits), l2=times(0.5, tiles_read)),
    "_panel_kernel": Kernel(
        flops=times(0.5, logits), l2=times(0.5, tiles_read), hbm=times(0.5, matrix)
    ),
    "_project_rows_kernel": Kernel(hbm=times(2, gradient)),
    # row_divergence
    "_row_divergence_fwd_kernel": Kernel(
        Loop({"MUFU.LG2": 1}, tile_turn, pair_classes), hbm=rows_and_notes
    ),
    "_row_divergence_bwd_kernel": Kernel(hbm=rows_of_notes, l2=clean_reads),
    # reconstruction_loss
    "_reconstruction_loss_fwd_kernel": Kernel(hbm=reconstructed(2)),
    "_reconstruction_loss_bwd_kernel": Kernel(hbm=reconstructed(4)),
}
# products of torch in a step of a large contrastive batch, all of them, with what they move
PRODUCTS = {
    "triton": Kernel(flops=logits, hbm=matrix),  # H Z
}


def line_of(name: str, case: Case, backend: str) -> Kernel:
    """A kernel's line, an empty one if it has none."""
    if case.op in CONTRASTIVE and name.startswith("aten::") and name.endswith("mm"):
        return PRODUCTS[backend]
    return KERNELS.get(name, Kernel())


def instance(kernel: Kernel, case: Case, codes: Mapping[str, Code]) -> tuple[Tile, Code] | None:
    """Of a CUDA C++ kernel the narrowest instance that takes the classes."""
    fitting = []
    for name, code in codes.items():
        if found := re.search(kernel.instances(case), name):
            tile = {key: int(value) for key, value in found.groupdict().items()}
            classes = tile.get("lanes", 1) * tile.get("steps", case.C)
            if classes >= case.C:
                fitting.append((classes, tile, code))
    return min(fitting, key=lambda each: each[0])[1:] if fitting else None


def work_of(
    name: str, calls: int, case: Case, kernel: Kernel, tile: Tile, code: Code | None
) -> Work:
    """What all launches of a kernel in a step ask for."""
    amounts = {key: getattr(kernel, key)(case, tile) for key in ("hbm", "l2", "flops")}
    if kernel.loop is None or code is None:
        return Work(name, calls, **amounts)
    turn = kernel.loop.turn(tile)
    marks = {mark: max(1, round(each * turn)) for mark, each in kernel.loop.marks.items()}
    way = code.way_around(marks)
    if not way:
        raise ValueError(f"{name} has no loop with {marks}")
    special = sum("MUFU" in row for row in way)
    elements, slots = kernel.loop.elements(case, tile), len(way) / turn
    if kernel.loop.around:
        marks = {mark: max(1, round(each * turn)) for mark, each in kernel.loop.around.items()}
        around = code.way_around(marks)
        if len(around) <= len(way):
            raise ValueError(f"{name} has no loop with {marks} around that one")
        slots += (len(around) - len(way)) / (turn * kernel.loop.turns)
    return Work(name, calls, elements, slots, special / turn, **amounts)
