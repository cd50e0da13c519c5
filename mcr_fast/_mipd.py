"""L_MIPD of latents and a fusion: draws the donors and picks the way the fusion is evaluated."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from mcr_fast import _checks as checks
from mcr_fast._calling import Fusion, as_callable, call_fusion
from mcr_fast._chunks import Chunk, Rows
from mcr_fast._columns import LinearColumns
from mcr_fast._owners import Owners
from mcr_fast._reach import Reached, looking_hooks_only, reach, without_backward_hooks
from mcr_fast._runs import reaches
from mcr_fast._sources import CallableSource, HiddenSource
from mcr_fast._wrapping import initialize_lazy, is_data_parallel, is_sharded
from mcr_fast.fusion import Additive, as_additive, finish
from mcr_fast.ops._modes import autocast_enabled
from mcr_fast.ops.linear_permuted_divergence import can_fuse, fused_divergence
from mcr_fast.ops.permuted_divergence import permuted_divergence
from mcr_fast.perturbation import Clean, Game, perturbed_divergences, runs_apart
from mcr_fast.reference._similarity import accumulation_dtype, without_autocast
from mcr_fast.sampling import CyclicPermutations, sample_permutations


class Draw(NamedTuple):
    """How the perturbations are drawn."""

    perturbation: str
    num_permutations: int | str
    scheme: str
    shared_donor: bool
    generator: torch.Generator | None


def draw_donors(
    draw: Draw, subsets: tuple[int, ...], num_modalities: int, num_rows: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """(order, donors) as the ops take them."""
    if draw.perturbation != "permute":
        # every row replaces itself: there is no donor to miss or to exclude
        count = 1 if draw.perturbation == "zero" else int(draw.num_permutations)
        rows = torch.arange(num_rows, device=device)
        return None, rows.expand(1, count if num_rows > 1 else 0, num_rows)
    if draw.num_permutations == "all" or num_rows <= 1:
        return None, None
    count = int(draw.num_permutations)
    # with one modality in every subset, own and shared donors are the same thing
    own = not draw.shared_donor and any(mask & (mask - 1) for mask in subsets)
    if draw.scheme == "cyclic":
        own = own and num_rows > num_modalities
        if count >= num_rows - 1 and not own:
            return None, None
        count = min(count, num_rows - 1)
    sample = sample_permutations(
        count,
        num_rows,
        scheme="cyclic" if draw.scheme == "cyclic" else "uniform",
        num_modalities=num_modalities if own else None,
        generator=draw.generator,
        device=device,
    )
    if isinstance(sample, CyclicPermutations):
        return sample.order, sample.shifts if own else sample.shifts[None]
    return None, sample if own else sample[None]


class Step(NamedTuple):
    """What L_MIPD of one batch is computed from."""

    latents: list[Tensor]  # M tensors [N, ..., D_m]
    fusion: Fusion
    logits: Tensor | None  # [N, C], the caller's
    num_classes: int
    rows: Rows
    game: Game
    draw: Draw


def mipd(step: Step) -> tuple[Tensor, Tensor, Tensor]:  # [], [S], [N, C]
    """L_MIPD, the divergences without gradient, and the clean logits."""
    initialize_lazy(step.fusion, step.latents)
    additive = as_additive(step.fusion, tuple(z.shape[-1] for z in step.latents))
    if additive is None:
        return _called(step)
    fused = _fused(additive, step)
    contributions = fused[1] if fused else _contributions(additive, step)
    if additive.head is None:
        checks.fusion_output(contributions[0], step.latents[0].shape[0], step.num_classes)
        if step.draw.perturbation == "permute":
            logits = _own_logits(step, additive, contributions)
            rows, game = step.rows, step.game
            divergences = fused[0] if fused else _linear(contributions, additive.bias, rows, game)
            return -divergences.sum(), divergences.detach(), logits
    return _added(step, additive, contributions)


def _contributions(additive: Additive, step: Step) -> Tensor:  # [M, N, H]
    """Of the clean latents; where replaced ones follow, a hook hears of the clean ones only."""
    if step.draw.perturbation == "permute" or torch.compiler.is_compiling():
        return additive.contributions(step.latents)
    with looking_hooks_only(_reach(step.fusion).modules):
        return additive.contributions(step.latents)


def _own_logits(step: Step, additive: Additive, contributions: Tensor) -> Tensor:  # [N, C]
    """The clean logits of an additive fusion, as calling it gives them."""
    if step.logits is not None:
        return step.logits
    if is_data_parallel(step.fusion):  # a call makes it ready for the backward
        return call_fusion(step.fusion, step.latents, step.num_classes)
    logits = finish(additive, contributions)
    checks.fusion_output(logits, step.latents[0].shape[0], step.num_classes)
    return logits


def _fused(additive: Additive, step: Step) -> tuple[Tensor, Tensor] | None:  # [S], [M, N, C]
    """The divergences of a linear fusion with its contributions, if one op serves both."""
    if not isinstance(additive, LinearColumns) or additive.head is not None:
        return None
    if step.draw.perturbation != "permute":
        return None
    device = additive.weight.device
    if autocast_enabled(device):
        operands = additive.operands(step.latents)
        with without_autocast(device):
            return _fuse(*operands, additive.bias, step)
    return _fuse(*additive.operands(step.latents), additive.bias, step)


def _fuse(
    latents: list[Tensor], weight: Tensor, bias: Tensor | None, step: Step
) -> tuple[Tensor, Tensor] | None:
    game, rows = step.game, step.rows
    if not can_fuse(latents, weight, game.backend):
        return None
    options = (game.subsets, game.strategy, game.clean_path, game.divergence, rows.exclude)
    masks = (rows.codes, rows.present, rows.sample_weight)
    return fused_divergence(latents, weight, bias, rows.order, rows.donors, *masks, *options)


def _linear(contributions: Tensor, bias: Tensor | None, rows: Rows, game: Game) -> Tensor:  # [S]
    return permuted_divergence(
        contributions,
        bias,
        rows.order,
        rows.donors,
        rows.codes,
        rows.present,
        rows.sample_weight,
        subsets=game.subsets,
        strategy=game.strategy,
        clean_path=game.clean_path,
        divergence=game.divergence,
        exclude=rows.exclude,
        backend=game.backend,
    )


def _called(step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """A fusion that is any function of the latents."""
    compiling = torch.compiler.is_compiling()
    reached = None if compiling else _reach(step.fusion)
    logits = step.logits
    if logits is None:
        logits = call_fusion(step.fusion, step.latents, step.num_classes, reached)
    play = _play_called_uncompiled if compiling else _play_called
    value, divergences = play(step, logits, reached)
    return value, divergences, logits


def _play_called(step: Step, logits: Tensor, reached: Reached | None) -> tuple[Tensor, Tensor]:
    reached = reached or _reach(step.fusion)
    latents, rows, game = step.latents, step.rows, step.game
    if step.logits is not None and game.clean_path == "routed":
        _refuse_others(latents, logits)
    with runs_apart(reached, game) as changed:
        owners = Owners(step.fusion, [z.shape[-1] for z in latents])
        replace = _replace(latents, step.draw, rows)
        source = CallableSource(as_callable(step.fusion), latents, owners, replace)
        clean = Clean(logits, not changed, given=step.logits is not None)
        return perturbed_divergences(source, clean, rows, len(latents), game, reached.modules)


def _refuse_others(latents: Sequence[Tensor], logits: Tensor) -> None:
    """Raise if clean logits with a graph are not those of the latents."""
    wanted = [x for x in latents if x.requires_grad]
    if torch.is_grad_enabled() and wanted and logits.requires_grad and not reaches(logits, wanted):
        raise ValueError(
            "logits must be computed from these latents for clean_path='routed', but their "
            "graph does not reach them; leave logits out, or take another clean_path"
        )


def _added(step: Step, additive: Additive, contributions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """An additive fusion that has a head, or whose perturbations are no permutations."""
    compiling = torch.compiler.is_compiling()
    reached = None if compiling else _reach_added(step, additive)
    if reached is None or additive.head is None:
        logits = _own_logits(step, additive, contributions)
    else:
        with looking_hooks_only(reached.modules):
            logits = _own_logits(step, additive, contributions)
    play = _play_added_uncompiled if compiling else _play_added
    value, divergences = play(step, additive, contributions, logits, reached)
    return value, divergences, logits


def _reach_added(step: Step, additive: Additive) -> Reached:
    """The head's modules; the fusion's where replaced latents are projected anew."""
    return _reach(additive.head if step.draw.perturbation == "permute" else step.fusion)


def _play_added(
    step: Step,
    additive: Additive,
    contributions: Tensor,
    logits: Tensor,
    reached: Reached | None,
) -> tuple[Tensor, Tensor]:
    rows, game = step.rows, step.game
    reached = reached or _reach_added(step, additive)
    # the contributions are computed once, so that donors' rows are what the projections gave;
    # replaced latents are projected anew, and then the clean ones in the same mode
    with runs_apart(reached, game) as changed:
        with without_backward_hooks(reached.modules):
            replacements = _project_replaced(additive, step.latents, step.draw, rows)
            if replacements is not None and changed:
                contributions = additive.contributions(step.latents)
        source = HiddenSource(additive, contributions, replacements, game.backend)
        clean = Clean(logits, not changed, given=step.logits is not None)
        return perturbed_divergences(source, clean, rows, len(step.latents), game, reached.modules)


# torch.compiler.disable, but without importing the compiler with the package
_play_called_uncompiled = _disable_dynamo(_play_called)
_play_added_uncompiled = _disable_dynamo(_play_added)


def _reach(fusion: object) -> Reached:
    """The fusion's modules; refuses those that the regularizer cannot run."""
    reached = reach(fusion)
    # what a function can reach may hold modules that it does not run
    modules = reached.modules if isinstance(fusion, nn.Module) else []
    sharded = next((type(m).__name__ for m in modules if is_sharded(m)), None)
    if sharded is not None:
        raise TypeError(
            f"fusion's {sharded} is sharded (DTensor), and the regularizer runs it on its own: "
            "leave the fusion out of fully_shard, so that its parameters belong to the unit around "
            "it, or pass an nn.Linear or AdditiveFusion of plain tensors"
        )
    return reached


def _noise(
    latents: Sequence[Tensor], count: int, draw: Draw
) -> list[Tensor]:  # M tensors [K, N, ...]
    """Normal noise with every latent element's standard deviation over the batch."""
    drawn = []
    for z in latents:
        on = z.device if draw.generator is None else draw.generator.device
        normal = torch.randn(count, *z.shape, generator=draw.generator, device=on, dtype=z.dtype)
        x = z.detach().to(accumulation_dtype(z.dtype))
        deviation = (x - x.mean(0)).square().mean(0).sqrt()
        drawn.append((normal.to(z.device) * deviation).to(z.dtype))
    return drawn


def _replace(
    latents: Sequence[Tensor], draw: Draw, rows: Rows
) -> Callable[[Tensor, int, Chunk], Tensor] | None:
    """What a callable fusion's perturbed latents are, other than donors' rows."""
    if draw.perturbation == "permute":
        return None
    if draw.perturbation == "zero":
        return lambda x, modality, chunk: torch.zeros_like(x)
    noise = _noise(latents, _count(rows), draw)

    def add_noise(x: Tensor, modality: int, chunk: Chunk) -> Tensor:
        part = noise[modality][chunk.first : chunk.last, chunk.start : chunk.stop]
        return x + part.flatten(0, 1)

    return add_noise


def _project_replaced(
    additive: Additive, latents: Sequence[Tensor], draw: Draw, rows: Rows
) -> list[Tensor] | None:  # M tensors [K, N, H]
    """An additive fusion's perturbed contributions, other than donors'; they carry a graph.

    So the gradient of one reaches its encoder and its projection with one factor.
    """
    if draw.perturbation == "permute":
        return None
    count = _count(rows)
    if draw.perturbation == "zero":
        replaced = [torch.zeros_like(z)[None].expand(count, *z.shape) for z in latents]
    else:
        noise = _noise(latents, count, draw)
        replaced = [z + noise_m for z, noise_m in zip(latents, noise, strict=True)]
    return [
        additive.project(m, x.flatten(0, 1)).unflatten(0, (count, len(latents[m])))
        for m, x in enumerate(replaced)
    ]


def _count(rows: Rows) -> int:
    assert rows.donors is not None, "perturbations without donors have a table of identities"
    return rows.donors.shape[1]
