"""The regularizer for fusions that have to be run: perturbed logits row by row, in chunks.

The gradient is taken while the value is computed. Each chunk of (row, donor) pairs goes through the
fusion once, on rows cut from the latents' graph; the divergence's gradient goes straight back to
those rows and to the parameters, is routed there, and the chunk's graph is freed. What stays are
sums of the size of the latents, the parameters and the logits, so that memory is bounded by
`chunk_rows` whatever the number of permutations. At the end the sums are attached to the loss as
its gradient, which so passes everybody's gradient hooks once, in the caller's backward.
"""

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge

from mcr_fast import _checks as checks
from mcr_fast._checkpointing import without_recomputation
from mcr_fast.game import head_factor, route_factors
from mcr_fast.mipd.apart import without_backward_hooks
from mcr_fast.mipd.gradients import GradientSums, Runs, fresh_casts
from mcr_fast.mipd.pairs import CHUNK_ELEMENTS, Pairs
from mcr_fast.mipd.request import Request
from mcr_fast.mipd.source import CLEAN, Source, Turn
from mcr_fast.ops._attach import attach_gradients
from mcr_fast.ops._modes import has_tangent, refuse_programs, refuse_transforms
from mcr_fast.ops.row_divergence import row_divergence_parts
from mcr_fast.reference._divergence import mean_or_zero
from mcr_fast.reference._similarity import accumulation_dtype

_WAY_OUT = (
    "this fusion is run on its own. Call backward() instead, or take a linear fusion (nn.Linear, "
    'AdditiveFusion without head), for jvp, jacfwd and hessian with backend="reference"'
)


def perturbed_divergences(
    request: Request,
    source: Source,
    logits: Tensor,  # [N, C], the caller's clean ones, attached to its graph
    same_mode: bool,  # in which a run on the clean rows would give just these
    modules: Sequence[nn.Module],
) -> tuple[Tensor, Tensor]:  # [], [S]
    """L_MIPD = -sum of D_S with its routed gradient attached, and the D_S without."""
    if has_tangent(*source.players, logits):
        raise NotImplementedError(f"MCRLoss has no forward-mode derivative here; {_WAY_OUT}")
    refuse_transforms("MCRLoss", _WAY_OUT)
    refuse_programs("MCRLoss")
    if request.logits is not None and same_mode:
        _refuse_detached(request, source.players)
    with torch.no_grad():
        pairs = Pairs(request)
    with without_backward_hooks(modules), without_recomputation(), fresh_casts():
        engine = _Engine(request, source, logits, same_mode, pairs)
        divergences = torch.stack([engine.play(subset) for subset in request.subsets])
        inputs, grads = engine.gradients()
    value = -divergences.sum()
    return attach_gradients(value, inputs, grads) if inputs else value, divergences


def _refuse_detached(request: Request, players: Sequence[Tensor]) -> None:
    """Raise if the clean path would be cut without anybody having asked for it."""
    assert request.logits is not None, "the caller's"
    num, strategy = len(request.latents), request.strategy
    if request.clean_path != "shared" or request.logits.requires_grad:
        return
    if not any(head_factor(strategy, subset, num) for subset in request.subsets):
        return
    if torch.is_grad_enabled() and any(x.requires_grad for x in players):
        raise ValueError(
            "logits must be computed from these latents with gradients for clean_path='shared', "
            "but they are detached; leave logits out, or take clean_path='detached'"
        )


class _Engine:
    """Plays the subsets one after the other and sums up the gradients of -D_S."""

    def __init__(
        self, request: Request, source: Source, logits: Tensor, same_mode: bool, pairs: Pairs
    ):
        self.request, self.source, self.pairs = request, source, pairs
        self.logits, self.num_modalities = logits, len(request.latents)
        self.grad_enabled = torch.is_grad_enabled()
        self.sums, self.runs = GradientSums(), Runs()
        self.chunk_rows = request.chunk_rows or max(
            1, CHUNK_ELEMENTS // max(source.row_elements, 1)
        )
        self.looked_for_noise = request.fusion_mode == "own"
        # the clean logits' gradient: along the caller's graph, or through runs of our own
        routed = request.clean_path == "routed"
        self.own_clean = routed or not same_mode
        self.clean = logits.detach() if same_mode else self._clean_values()
        reaches = self.own_clean or logits.requires_grad
        self.wants_clean = self.grad_enabled and reaches and request.clean_path != "detached"
        self.shared_cotangent = torch.zeros_like(
            self.clean, dtype=accumulation_dtype(self.clean.dtype)
        )
        self.cotangents = [
            self.shared_cotangent.clone()
            for _ in range(self.num_modalities if routed and self.grad_enabled else 0)
        ]
        if self.grad_enabled:
            for x in source.players:
                if x.requires_grad:
                    self.sums.of(x)  # a batch without pairs has zero gradient, not none

    def _clean_values(self) -> Tensor:  # [N, C]
        """The clean logits in the mode of the perturbed ones."""
        nobody, parts = [0] * self.num_modalities, []
        with torch.no_grad():
            for chunk in self.pairs.clean_chunks(self.chunk_rows):
                parts.append(self._run(Turn(CLEAN, nobody, 0, chunk))[1])
                self._check(parts[-1], chunk.stop - chunk.start)
        return torch.cat(parts) if parts else self.logits.detach()

    def _check(self, logits: Tensor, num_rows: int) -> None:
        checks.fusion_output(logits, num_rows, self.logits.shape[1])

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
        route = route_factors(self.request.strategy, subset, self.num_modalities)
        head = head_factor(self.request.strategy, subset, self.num_modalities)
        sums, grad_clean = GradientSums(), torch.zeros_like(self.shared_cotangent)
        total, weight = grad_clean.new_zeros(()), grad_clean.new_zeros(())
        for chunk in self.pairs.chunks(self.chunk_rows):
            row_weight = chunk.weights(subset)
            kept = None
            if row_weight is not None and self.request.present is not None:
                kept = row_weight.ne(0)
            turn = Turn(subset, route, head, chunk, kept)
            t, w, g = self._compare(turn, row_weight, sums)
            total, weight = total + t, weight + w
            if self.wants_clean:
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

    def _compare(
        self, turn: Turn, row_weight: Tensor | None, sums: GradientSums
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of a chunk's weighted divergences and weights, and the clean rows' gradient."""
        index = turn.chunk.repeat(self.pairs.index)
        parts: list[Tensor] = []

        def compare(perturbed: Tensor) -> Tensor | None:
            self._check(perturbed, len(index))
            parts.extend(
                row_divergence_parts(
                    perturbed.detach(),
                    self.clean,
                    index,
                    row_weight,
                    divergence=self.request.divergence,
                    want_grad=perturbed.requires_grad or self.wants_clean,
                    backend=self.request.backend,
                )
            )
            return parts[2] if perturbed.requires_grad else None

        self._pull(turn, compare, sums)
        total, weight, _, grad_clean = parts
        return total, weight, grad_clean

    def _pull(
        self, turn: Turn, cotangent_of: Callable[[Tensor], Tensor | None], sums: GradientSums
    ) -> None:
        """Run, and collect what comes back from the logits by the cotangent made of them."""
        wants_used = self.grad_enabled and self.source.wants_used(turn)
        with torch.set_grad_enabled(self.grad_enabled):
            pulled = self.runs.pull(lambda: self._run(turn), cotangent_of, wants_used)
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
        for m, cotangent in enumerate(self.cotangents):
            self._pull_clean([int(n == m) for n in range(num)], 0, cotangent)
        self._pull_clean([0 if self.cotangents else 1] * num, 1, self.shared_cotangent)

    def _pull_clean(self, route: list[int], head: int, cotangent: Tensor) -> None:
        for chunk in self.pairs.clean_chunks(self.chunk_rows):
            rows = cotangent[chunk.start : chunk.stop]
            turn = Turn(CLEAN, route, head, chunk)
            self._pull(turn, functools.partial(_given, rows), self.sums)


def _given(cotangent: Tensor, logits: Tensor) -> Tensor:
    return cotangent
