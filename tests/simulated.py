"""The row algorithms of the CUDA kernels, run on the host by teams of 4, 8 and 32 lanes.

`tests/teams/` compiles the kernels' own headers; what their launcher does around them is repeated
here in torch.
"""

import functools
import hashlib
import importlib.util
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import torch
from divergences import Batch, Rows, options_of
from torch import Tensor
from torch.utils import cpp_extension

from mcr_fast._names import OF_LOGITS, OF_SOFTMAX

ROOT = Path(__file__).resolve().parent.parent
TEAMS = Path(__file__).resolve().parent / "teams"
LANES = (4, 8, 32)
LOG2E = 1.44269504088896340736
FARTHEST = 1e20


@functools.cache
def module() -> ModuleType:
    """The compiled teams; built again when a header has changed."""
    headers = sorted((ROOT / "csrc").glob("**/*.h"))
    digest = hashlib.sha256()
    for path in (*headers, *sorted(TEAMS.iterdir())):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "teams" / digest.hexdigest()[:16]
    library = folder / f"mcr_teams{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _compile(library)
    spec = importlib.util.spec_from_file_location("mcr_teams", library)
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def _compile(library: Path) -> None:
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wno-psabi", "-Wno-attributes"]
    flags += [f"-I{ROOT / 'csrc'}", f"-I{sysconfig.get_paths()['include']}"]
    flags += [f"-isystem{path}" for path in cpp_extension.include_paths()]
    objects = []
    for name, source, defines in [
        *(
            (f"{stem}{n}", f"{stem}.cpp", [f"-DMCR_ISA=lanes{n}", f"-DMCR_VEC_BYTES={4 * n}"])
            for n in LANES
            for stem in ("rows", "similarities")
        ),
        ("threads", "reconstruction.cpp", ["-DMCR_ISA=threads"]),
        ("similarities", "similarities_module.cpp", []),
        ("module", "module.cpp", []),
    ]:
        objects.append(str(library.parent / f"{name}.o"))
        command = ["c++", *flags, *defines, "-c", str(TEAMS / source), "-o", objects[-1]]
        subprocess.run(command, check=True)
    partial = library.with_suffix(".partial")
    subprocess.run(["c++", "-shared", *objects, "-o", str(partial)], check=True)
    partial.replace(library)


def permuted_divergence(
    x: Batch,
    upstream: Tensor | float = 1.0,
    *,
    lanes: int,
    chunk: int | None = None,
    spare_steps: int = 0,
    parts: int = 1,
    want_grad: bool = True,
    far: bool = False,
    left: Tensor | None = None,
    **options,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Values and, in the inputs' dtypes, the gradients to contributions and bias.

    `parts`: teams that share a row's pairs. `far`: by permuted_divergence_far.h; `left` [2, S, N]
    int32 of 0 then holds 1 for the rows, and the donors, of pairs that were left to the others.
    """
    options = options_of(x, **options)
    m, n, c = x.contributions.shape
    count = len(options["subsets"])
    order = torch.arange(n) if x.order is None else x.order
    k = n - 1 if x.donors is None else x.donors.shape[1]
    table = receivers = shifts = None
    if x.donors is not None and x.order is None:
        table = x.donors.to(torch.int32).contiguous()
        receivers = x.donors.argsort(-1).to(torch.int32).contiguous()
    elif x.donors is not None:
        shifts = x.donors.contiguous()
    present = None
    if x.present is not None:
        present = (x.present[order].int() << torch.arange(m)).sum(1).to(torch.int32)
    weight = None if x.sample_weight is None else x.sample_weight[order].float()
    in_units = functools.partial(_in_units, divergence=options["divergence"])
    bias = torch.zeros(c) if x.bias is None else in_units(x.bias)
    tensors = {
        "contributions": in_units(x.contributions[:, order]).contiguous(),
        "bias": bias,
        "table": table,
        "receivers": receivers,
        "shifts": shifts,
        "order": x.order,
        "labels": None if x.labels is None else x.labels[order].contiguous(),
        "present": present,
        "row_weight": weight,
        "subsets": torch.tensor(options["subsets"], dtype=torch.int32),
        "factors": _factors(x, upstream, k, options),
        "row_values": torch.zeros(count, n, dtype=torch.float64),
        "grad": torch.zeros(m, n, c),
        "grad_bias_rows": torch.zeros(n, c),
    }
    stride = c
    if far:
        stride = lanes * (-(-c // lanes) + spare_steps)
        tensors |= _far_rows(tensors["contributions"], bias, stride)
        tensors["left"] = torch.zeros(2, count, n, dtype=torch.int32) if left is None else left
    numbers = {
        "modalities": m,
        "rows": n,
        "classes": c,
        "row_stride": stride,
        "permutations": k,
        "own_donors": x.donors is not None and x.donors.shape[0] > 1,
        "num_subsets": count,
        "want_grad": want_grad,
    }
    names = {key: options[key] for key in ("strategy", "clean_path", "divergence", "exclude")}
    addresses = {key: None if t is None else t.data_ptr() for key, t in tensors.items()}
    if far:
        module().pull_far(lanes, addresses | numbers | names, chunk or max(k, 1), parts)
    else:
        module().pull(lanes, addresses | numbers | names, chunk or max(k, 1), spare_steps, parts)
    grad_bias = None if x.bias is None else tensors["grad_bias_rows"].sum(0).to(x.bias.dtype)
    return (
        tensors["row_values"].sum(1).float(),
        tensors["grad"].to(x.contributions.dtype),
        grad_bias,
    )


def _in_units(x: Tensor, divergence: str) -> Tensor:
    """Rows as the launcher lays them out."""
    x = x.float()
    if divergence not in OF_LOGITS:
        return x
    if divergence in OF_SOFTMAX:
        return (x - x.amax(-1, keepdim=True)).clamp(min=-FARTHEST) * LOG2E + 0 * x
    return x.clamp(-FARTHEST, FARTHEST) * LOG2E + 0 * x


def _far_rows(rows: Tensor, bias: Tensor, stride: int) -> dict[str, Tensor]:
    """Rows, bias and their powers as permuted_divergence_far.h reads them."""
    spare = (0, stride - rows.shape[-1])
    pad = torch.nn.functional.pad
    powers = torch.exp2(rows).clamp(min=torch.finfo(torch.float32).tiny)
    return {
        "contributions": pad(rows, spare).contiguous(),
        "powers": pad(powers, spare, value=1.0).contiguous(),
        "bias": bias,
        "bias_powers": pad(torch.exp2(bias), spare).contiguous(),
    }


def row_divergence(
    x: Rows,
    *,
    lanes: int,
    spare_steps: int = 0,
    parts: int = 1,
    want_grad: bool = True,
    divergence: str = "jsd",
) -> tuple[Tensor, Tensor, Tensor]:
    """The weighted mean and, in the inputs' dtypes, the gradients to perturbed and clean rows.

    `parts`: teams that share a clean row's perturbed ones.
    """
    n, c = x.clean.shape
    sorted_rows, members = x.rows.sort(stable=True)
    tensors = {
        "perturbed": x.perturbed.float().contiguous(),
        "clean": x.clean.float().contiguous(),
        "start": torch.searchsorted(sorted_rows, torch.arange(n + 1)),
        "members": members,
        "row_weight": None if x.row_weight is None else x.row_weight.float(),
        "grad_perturbed": torch.full(x.perturbed.shape, torch.nan),
        "grad_clean": torch.zeros(n, c),
        "sums": torch.zeros(2, dtype=torch.float64),
    }
    addresses = {key: None if t is None else t.data_ptr() for key, t in tensors.items()}
    rest = {"classes": c, "rows": n, "divergence": divergence, "want_grad": want_grad}
    module().hold(lanes, addresses | rest, spare_steps, parts)
    total, weight = tensors["sums"]
    factor = 1 / weight if weight else weight
    return (
        (total * factor).float(),
        (tensors["grad_perturbed"] * factor).to(x.perturbed.dtype),
        (tensors["grad_clean"] * factor).to(x.clean.dtype),
    )


def reconstruction_loss(
    latents: list[Tensor],  # M of [N, D_m], the numbers of a row side by side
    reconstruction: Tensor,  # [N, sum of D_m]
    upstream: float = 1.0,
    *,
    blocks: int = 1,
    in_pieces: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """The loss and, in the inputs' dtypes, the gradients; in 16 bits bfloat16 alone."""
    count = max(1, reconstruction.numel())
    loss, column = 0.0, 0
    grads = [torch.full(z.shape, torch.nan, dtype=z.dtype) for z in latents]
    grad_h = torch.full(reconstruction.shape, torch.nan, dtype=reconstruction.dtype)
    for z, grad in zip(latents, grads, strict=True):
        if z.numel() == 0:
            continue
        h, to = (t[:, column : column + z.shape[1]] for t in (reconstruction, grad_h))
        column += z.shape[1]
        numbers = {
            "latents": z.data_ptr(),
            "reconstruction": h.data_ptr(),
            "latents_stride": z.stride(0),
            "reconstruction_stride": h.stride(0),
            "width": z.shape[1],
            "rows": len(z),
            "grad_stride": to.stride(0),
            "latents_bytes": z.itemsize,
            "reconstruction_bytes": h.itemsize,
            "in_pieces": in_pieces,
            "blocks": blocks,
            "factor": 2 * upstream / count,
        }
        nowhere = {"grad_latents": None, "grad_reconstruction": None}
        loss += module().reconstruct(numbers | nowhere) / count
        somewhere = {"grad_latents": grad.data_ptr(), "grad_reconstruction": to.data_ptr()}
        module().reconstruct(numbers | somewhere)
    return torch.tensor(loss, dtype=torch.float32), [*grads, grad_h]


def _factors(x: Batch, upstream: Tensor | float, k: int, options: dict) -> Tensor:
    """Upstream gradients over the sums of the pair weights, as weigh_subsets takes them."""
    from mcr_fast.game import members
    from mcr_fast.pairing import donor_table, pair_weights

    m, n, c = x.contributions.shape
    tables = donor_table(x.order, x.donors, n, x.contributions.device).expand(m, -1, -1)
    sums = []
    for subset in options["subsets"]:
        inside = members(subset, m)
        weights = pair_weights(
            *([tables[i] for i in inside], inside, x.labels, x.present),
            None if x.sample_weight is None else x.sample_weight.double(),
            exclude=options["exclude"],
        )
        sums.append(weights.double().sum())
    total = torch.stack(sums) * (1 if options["divergence"] == "jsd" else c)
    g = torch.as_tensor(upstream, dtype=torch.float64).expand(len(sums))
    return torch.where(total != 0, g / total, 0.0).float()
