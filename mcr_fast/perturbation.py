"""The regularizer for fusions that have to be run: perturbed logits row by row, in chunks.

The gradient is taken while the value is computed. Each chunk of (row, donor) pairs goes through the
fusion once, on leaves cut from the latents' graph; the divergence's gradient goes straight back to
the leaves and to the parameters, is routed there, and the chunk's graph is freed. What stays are
sums of the size of the latents, the parameters and the logits, so that memory is bounded by
`chunk_rows` whatever the number of permutations. At the end the sums are attached to the loss as
its gradient.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad

from mcr_fast import _checks as checks
from mcr_fast._chunks import (
    CHUNK_ELEMENTS,
    Chunk,
    GradientSums,
    Pairs,
    Rows,
    chunks,
    differentiable_leaves,
)
from mcr_fast._sources import Source, Turn
from mcr_fast.ops._attach import attach_gradients
from mcr_fast.ops.row_divergence import row_divergence_parts
from mcr_fast.reference._divergence import mean_or_zero
from mcr_fast.reference._game import head_factor, route_factors
from mcr_fast.reference._similarity import accumulation_dtype


class Game(NamedTuple):
    """The options of the regularizer."""

    subsets: tuple[int, ...]
    strategy: str
    clean_path: str
    divergence: str
    chunk_rows: int | None
    backend: str | None


def perturbed_divergences(
    source: Source,
    logits: Tensor,  # [N, C], clean, attached to the caller's graph
    rows: Rows,
    num_modalities: int,
    game: Game,
) -> tuple[Tensor, Tensor]:  # [], [S]
    """L_MIPD = -sum of D_S with its routed gradient attached, and the D_S without."""
    run = _uncompiled if torch.compiler.is_compiling() else _perturbed_divergences
    return run(source, logits, rows, num_modalities, game)


def _perturbed_divergences(
    source: Source, logits: Tensor, rows: Rows, num_modalities: int, game: Game
) -> tuple[Tensor, Tensor]:
    _refuse_tangents([*source.players, logits])
    heads = [head_factor(game.strategy, subset, num_modalities) for subset in game.subsets]
    if game.clean_path == "shared" and any(heads):
        _refuse_detached(source.players, logits)
    with torch.no_grad():
        pairs = Pairs(rows, num_modalities, len(logits), logits.device)
    engine = _Engine(source, logits, pairs, num_modalities, game)
    divergences = torch.stack([engine.play(subset) for subset in game.subsets])
    inputs, grads = engine.gradients()
    value = -divergences.sum()
    return attach_gradients(value, inputs, grads) if inputs else value, divergences


# torch.compiler.disable, but without importing the compiler with the package
_uncompiled = _disable_dynamo(_perturbed_divergences)


def _refuse_tangents(tensors: Sequence[Tensor]) -> None:
    """Raise in forward-mode differentiation: the leaves would lose its tangents unseen."""
    if forward_ad._current_level < 0:
        return
    if any(forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise NotImplementedError("MCRLoss has no forward-mode derivative; use backward()")


def _refuse_detached(players: Sequence[Tensor], logits: Tensor) -> None:
    """Raise if the clean path would be cut without anybody having asked for it."""
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in players)
    if wanted and not logits.requires_grad:
        raise ValueError(
            "logits must be computed from these latents with gradients for clean_path='shared', "
            "but they are detached; leave logits out, or take clean_path='detached'"
        )


class _Engine:
    """Plays the subsets one after the other and sums up the gradients of -D_S."""

    def __init__(
        self, source: Source, logits: Tensor, pairs: Pairs, num_modalities: int, game: Game
    ):
        self.source, self.logits, self.pairs, self.game = source, logits, pairs, game
        self.num_modalities = num_modalities
        self.clean = logits.detach()
        self.sums = GradientSums()
        self.grad_enabled = torch.is_grad_enabled()
        self.wants_clean = (
            self.grad_enabled and logits.requires_grad and game.clean_path != "detached"
        )
        zeros = torch.zeros_like(self.clean, dtype=accumulation_dtype(logits.dtype))
        self.shared_cotangent = zeros
        routed = game.clean_path == "routed" and self.grad_enabled
        self.cotangents = [zeros.clone() for _ in range(num_modalities if routed else 0)]
        if self.grad_enabled:
            for x in source.players:
                if x.requires_grad:
                    self.sums.of(x)  # a batch without pairs has zero gradient, not none

    def play(self, subset: int) -> Tensor:  # []
        """D_S; adds its gradients to the sums."""
        game, n = self.game, len(self.clean)
        route = route_factors(game.strategy, subset, self.num_modalities)
        head = head_factor(game.strategy, subset, self.num_modalities)
        sums, grad_clean = GradientSums(), torch.zeros_like(self.shared_cotangent)
        total = grad_clean.new_zeros(())
        weight = grad_clean.new_zeros(())
        chunk_rows = game.chunk_rows or max(1, CHUNK_ELEMENTS // max(self.source.row_elements, 1))
        for chunk in chunks(self.pairs.count, n, chunk_rows):
            t, w, g = self._run_chunk(subset, route, head, chunk, sums)
            total, weight = total + t, weight + w
            if g is not None:
                grad_clean += g
        # the loss is -D_S, and nothing was divided by the weight so far
        scale = torch.where(weight == 0, 0, -1 / weight)
        self.sums.merge(sums, scale)
        self.shared_cotangent.add_(grad_clean * scale, alpha=head)
        for m, cotangent in enumerate(self.cotangents):
            cotangent.add_(grad_clean * scale, alpha=route[m])
        return mean_or_zero(total, weight)

    def _run_chunk(
        self, subset: int, route: list[int], head: int, chunk: Chunk, sums: GradientSums
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        row_weight = self.pairs.weights(subset, chunk)
        kept = None
        if row_weight is not None and self.pairs.rows.present is not None:
            kept = row_weight.ne(0)
        turn = Turn(subset, route, head, chunk, self.pairs, kept)
        with torch.set_grad_enabled(self.grad_enabled):
            leaves, perturbed = self.source.run(turn)
        index = chunk.repeat(self.pairs.index)
        checks.fusion_output(perturbed, len(index), self.clean.shape[1])
        total, weight, grad_perturbed, grad_clean = row_divergence_parts(
            perturbed.detach(),
            self.clean,
            index,
            row_weight,
            divergence=self.game.divergence,
            want_grad=perturbed.requires_grad or self.wants_clean,
            backend=self.game.backend,
        )
        if perturbed.requires_grad:
            self._go_back(turn, leaves, perturbed, grad_perturbed, sums)
        return total, weight, grad_clean if self.wants_clean else None

    def _go_back(
        self,
        turn: Turn,
        leaves: list[Tensor],
        perturbed: Tensor,
        cotangent: Tensor,
        sums: GradientSums,
    ) -> None:
        """From the perturbed logits to the leaves and the parameters."""
        wanted = [x for x in leaves if x.requires_grad]
        parameters = differentiable_leaves(perturbed, leaves) if turn.head != 0 else []
        if not wanted and not parameters:
            return
        # retain_graph: the fusion may use a tensor with a graph of the caller's, who needs it later
        grads = torch.autograd.grad(
            perturbed,
            [*wanted, *parameters],
            cotangent.to(perturbed.dtype),
            retain_graph=True,
            allow_unused=True,
        )
        for x, grad in zip(parameters, grads[len(wanted) :], strict=True):
            if grad is not None:
                sums.of(x).add_(grad, alpha=turn.head)
        found = iter(grads)
        self.source.collect(turn, [next(found) if x.requires_grad else None for x in leaves], sums)

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors to attach to, and the gradient of each."""
        if not self.grad_enabled:
            return [], []
        if self.cotangents:
            self.source.route_clean(self.logits, self.cotangents, self.shared_cotangent, self.sums)
        elif self.wants_clean:
            self.sums.of(self.logits).add_(self.shared_cotangent)
        found = [(x, grad) for x, grad in self.sums.items() if x.requires_grad]
        return [x for x, _ in found], [grad for _, grad in found]
