"""The regularizer for fusions that have to be run: perturbed logits row by row, in chunks.

The gradient is taken while the value is computed. Each chunk of (row, donor) pairs goes through the
fusion once, on rows cut from the latents' graph; the divergence's gradient goes straight back to
those rows and to the parameters, is routed there, and the chunk's graph is freed. What stays are
sums of the size of the latents, the parameters and the logits, so that memory is bounded by
`chunk_rows` whatever the number of permutations. At the end the sums are attached to the loss as
its gradient, which so passes everybody's gradient hooks once, in the caller's backward.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from mcr_fast._chunks import CHUNK_ELEMENTS, Chunk, GradientSums, Pairs, Rows, chunks
from mcr_fast._reach import (
    Reached,
    evaluating,
    mixes_rows,
    to_evaluate,
    unremembered,
    without_backward_hooks,
)
from mcr_fast._runs import Runs, fresh_casts
from mcr_fast._sources import CLEAN, Source, Turn
from mcr_fast.reference._game import head_factor, route_factors
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from mcr_fast import _checks as checks
from mcr_fast._checkpointing import without_recomputation
from mcr_fast.ops._attach import attach_gradients
from mcr_fast.ops._modes import has_tangent, refuse_transforms
from mcr_fast.ops.row_divergence import row_divergence_parts
from mcr_fast.reference._divergence import mean_or_zero
from mcr_fast.reference._similarity import accumulation_dtype

_WAY_OUT = (
    "this fusion is run on its own. Call backward() instead, or take a linear fusion (nn.Linear, "
    'AdditiveFusion without head), for jvp, jacfwd and hessian with backend="reference"'
)


class Game(NamedTuple):
    """The options of the regularizer."""

    subsets: tuple[int, ...]
    strategy: str
    clean_path: str
    divergence: str
    chunk_rows: int | None
    fusion_mode: str
    backend: str | None


class Clean(NamedTuple):
    """The caller's clean logits, attached to its graph."""

    logits: Tensor  # [N, C]
    same_as_a_run: bool  # else a run on the clean rows gives others: it is in another mode
    given: bool  # by the caller, not made by this call


@contextmanager
def runs_apart(reached: Reached, game: Game) -> Iterator[list[nn.Module]]:
    """The mode in which the regularizer runs a fusion; gives the modules that it changed."""
    if game.fusion_mode == "own":
        yield []
        return
    changed, mixing = to_evaluate(reached), mixes_rows(reached.modules)
    if mixing is not None:
        raise ValueError(
            f"fusion has a {mixing} without running statistics, which mixes the rows that the "
            "regularizer permutes; give it track_running_stats=True, or take fusion_mode='own'"
        )
    with evaluating(changed), unremembered(reached.modules):
        yield changed


def perturbed_divergences(
    source: Source,
    clean: Clean,
    rows: Rows,
    num_modalities: int,
    game: Game,
    modules: Sequence[nn.Module],
) -> tuple[Tensor, Tensor]:  # [], [S]
    """L_MIPD = -sum of D_S with its routed gradient attached, and the D_S without."""
    logits = clean.logits
    if has_tangent(*source.players, logits):
        raise NotImplementedError(f"MCRLoss has no forward-mode derivative here; {_WAY_OUT}")
    refuse_transforms("MCRLoss", _WAY_OUT)
    heads = [head_factor(game.strategy, subset, num_modalities) for subset in game.subsets]
    needed = game.clean_path == "shared" and any(heads)
    if needed and clean.given and clean.same_as_a_run:
        _refuse_detached(source.players, logits)
    with torch.no_grad():
        pairs = Pairs(rows, num_modalities, len(logits), logits.device)
    with without_backward_hooks(modules), without_recomputation(), fresh_casts():
        engine = _Engine(source, clean, pairs, num_modalities, game)
        divergences = torch.stack([engine.play(subset) for subset in game.subsets])
        inputs, grads = engine.gradients()
    value = -divergences.sum()
    return attach_gradients(value, inputs, grads) if inputs else value, divergences


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

    def __init__(self, source: Source, clean: Clean, pairs: Pairs, num_modalities: int, game: Game):
        self.source, self.pairs, self.game = source, pairs, game
        self.num_modalities = num_modalities
        self.grad_enabled = torch.is_grad_enabled()
        self.sums, self.runs = GradientSums(), Runs()
        self.chunk_rows = game.chunk_rows or max(1, CHUNK_ELEMENTS // max(source.row_elements, 1))
        self.looked_for_noise = game.fusion_mode == "own"
        self.logits = clean.logits
        # the clean logits' gradient: along the caller's graph, or through runs of our own
        self.own_clean = game.clean_path == "routed" or not clean.same_as_a_run
        same = clean.same_as_a_run
        self.clean = clean.logits.detach() if same else self._clean_values(clean.logits)
        reaches = self.own_clean or clean.logits.requires_grad
        self.wants_clean = self.grad_enabled and reaches and game.clean_path != "detached"
        zeros = torch.zeros_like(self.clean, dtype=accumulation_dtype(self.clean.dtype))
        self.shared_cotangent = zeros
        routed = game.clean_path == "routed" and self.grad_enabled
        self.cotangents = [zeros.clone() for _ in range(num_modalities if routed else 0)]
        if self.grad_enabled:
            for x in source.players:
                if x.requires_grad:
                    self.sums.of(x)  # a batch without pairs has zero gradient, not none

    def _clean_values(self, logits: Tensor) -> Tensor:  # [N, C]
        with torch.no_grad():
            parts = [self._run(self._clean_turn(chunk, (), 0))[1] for chunk in self._clean_chunks()]
        for part, chunk in zip(parts, self._clean_chunks(), strict=True):
            checks.fusion_output(part, chunk.stop - chunk.start, logits.shape[1])
        return torch.cat(parts) if parts else logits.detach()

    def _clean_chunks(self) -> list[Chunk]:
        return list(chunks(1, len(self.pairs.index), self.chunk_rows))

    def _clean_turn(self, chunk: Chunk, route: Sequence[int], head: int) -> Turn:
        factors = route or [0] * self.num_modalities
        return Turn(CLEAN, factors, head, chunk, self.pairs)

    def _run(self, turn: Turn) -> tuple[list[GradientEdge | None], Tensor]:
        """Run the fusion; the first time, see to it that it draws no random numbers."""
        if self.looked_for_noise:
            return self.source.run(turn)
        self.looked_for_noise = True
        device = self.pairs.index.device
        before = checks.random_state(device)
        edges, logits = self.source.run(turn)
        if checks.moved(before, device):
            checks.same_logits(logits, self.source.run(turn)[1])
        return edges, logits

    def play(self, subset: int) -> Tensor:  # []
        """D_S; adds its gradients to the sums."""
        route = route_factors(self.game.strategy, subset, self.num_modalities)
        head = head_factor(self.game.strategy, subset, self.num_modalities)
        sums, grad_clean = GradientSums(), torch.zeros_like(self.shared_cotangent)
        total = grad_clean.new_zeros(())
        weight = grad_clean.new_zeros(())
        for chunk in chunks(self.pairs.count, len(self.clean), self.chunk_rows):
            t, w, g = self._run_chunk(subset, route, head, chunk, sums)
            total, weight = total + t, weight + w
            if g is not None:
                grad_clean += g
        # the loss is -D_S, and nothing was divided by the weight so far
        scale = torch.where(weight == 0, 0, -1 / weight)
        divergence = mean_or_zero(total, weight)
        if self.pairs.valid is not None:
            scale, divergence = scale * self.pairs.valid, divergence * self.pairs.valid
        self.sums.merge(sums, scale)
        self.shared_cotangent.add_(grad_clean * scale, alpha=head)
        for m, cotangent in enumerate(self.cotangents):
            cotangent.add_(grad_clean * scale, alpha=route[m])
        return divergence

    def _run_chunk(
        self, subset: int, route: list[int], head: int, chunk: Chunk, sums: GradientSums
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        row_weight = self.pairs.weights(subset, chunk)
        kept = None
        if row_weight is not None and self.pairs.rows.present is not None:
            kept = row_weight.ne(0)
        turn = Turn(subset, route, head, chunk, self.pairs, kept)
        index = chunk.repeat(self.pairs.index)
        parts: list[Tensor] = []

        def compare(perturbed: Tensor) -> Tensor | None:
            checks.fusion_output(perturbed, len(index), self.clean.shape[1])
            parts.extend(
                row_divergence_parts(
                    perturbed.detach(),
                    self.clean,
                    index,
                    row_weight,
                    divergence=self.game.divergence,
                    want_grad=perturbed.requires_grad or self.wants_clean,
                    backend=self.game.backend,
                )
            )
            return parts[2] if perturbed.requires_grad else None

        self._pull(turn, compare, sums)
        total, weight, _, grad_clean = parts
        return total, weight, grad_clean if self.wants_clean else None

    def _pull(
        self,
        turn: Turn,
        cotangent_of: Callable[[Tensor], Tensor | None],
        sums: GradientSums,
    ) -> None:
        """Run, and collect what comes back from the logits by the cotangent made of them."""
        with torch.set_grad_enabled(self.grad_enabled):
            pulled = self.runs.pull(
                lambda: self._run(turn), cotangent_of, self.source.wants_used(turn)
            )
        if pulled is not None:
            with torch.no_grad():
                self.source.collect(turn, pulled, sums)

    def gradients(self) -> tuple[list[Tensor], list[Tensor]]:
        """The tensors to attach to, and the gradient of each."""
        if not self.grad_enabled:
            return [], []
        if self.wants_clean and self.own_clean:
            self._route_clean()
        elif self.wants_clean:
            self.sums.of(self.logits).add_(self.shared_cotangent)
        found = [(x, grad) for x, grad in self.sums.items() if x.requires_grad]
        return [x for x, _ in found], [grad for _, grad in found]

    def _route_clean(self) -> None:
        """Run the clean rows once for every cotangent: for a player's own, and for the shared."""
        num = self.num_modalities
        if not self.cotangents:
            self._pull_clean([1] * num, 1, self.shared_cotangent)
            return
        for m, cotangent in enumerate(self.cotangents):
            self._pull_clean([int(n == m) for n in range(num)], 0, cotangent)
        self._pull_clean([0] * num, 1, self.shared_cotangent)

    def _pull_clean(self, route: list[int], head: int, cotangent: Tensor) -> None:
        for chunk in self._clean_chunks():
            turn = self._clean_turn(chunk, route, head)
            rows = cotangent[chunk.start : chunk.stop]
            self._pull(turn, functools.partial(_given, rows), self.sums)


def _given(cotangent: Tensor, logits: Tensor) -> Tensor:
    return cotangent
