"""The regularizer's gradient by definition: loops over subsets and pairs, autograd and detach.

Nothing of the package is used. For every subset S the perturbed logits of every pair are computed
one row at a time; D_S is differentiated once along the perturbed path (clean logits detached) and
once along the clean path (perturbed logits detached), to every tensor; the factors come from the
functions below.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def subsets_of(subsets: str, num_modalities: int) -> list[tuple[int, ...]]:
    sizes = [1] if subsets == "single" else range(1, num_modalities)
    return [s for size in sizes for s in itertools.combinations(range(num_modalities), size)]


def route(strategy: str, subset: tuple[int, ...], owner: int | None, num_modalities: int) -> int:
    """The factor of a tensor that belongs to modality `owner`, None: shared by all."""
    outside = {"greedy": -1, "independent": 0, "collaborative": 1}[strategy]
    if owner is None:
        if strategy == "collaborative":
            return 1
        return len(subset) + outside * (num_modalities - len(subset))
    return 1 if owner in subset else outside


def clean_factor(
    clean_path: str, strategy: str, subset, owner: int | None, num_modalities: int
) -> int:
    if clean_path == "detached":
        return 0
    if clean_path == "shared":
        return route(strategy, subset, None, num_modalities)
    return route(strategy, subset, owner, num_modalities)


def jsd(z: Tensor, w: Tensor) -> Tensor:
    return _jensen_shannon(z.log_softmax(-1), w.log_softmax(-1)).sum(-1)


def mse(z: Tensor, w: Tensor) -> Tensor:
    return (z - w).square().mean(-1)


def binary_jsd(z: Tensor, w: Tensor) -> Tensor:
    sides = [_jensen_shannon(F.logsigmoid(s * z), F.logsigmoid(s * w)) for s in (1, -1)]
    return sum(sides).mean(-1)


def _jensen_shannon(p: Tensor, q: Tensor) -> Tensor:
    """Of logarithms of probabilities, elementwise."""
    middle = torch.logaddexp(p, q) - math.log(2)
    return (p.exp() * (p - middle) + q.exp() * (q - middle)) / 2


# A divergence between clean and perturbed rows: [..., C], [..., C] -> [...]
DEFINITIONS = {"jsd": jsd, "mse": mse, "binary_jsd": binary_jsd}


def pairs_of(
    tables: Sequence[Sequence[Sequence[int]]],  # a table [K][N] for each modality
    subset: tuple[int, ...],
    exclude: str | None,
    labels: Sequence[float] | None,
    present: Sequence[Sequence[bool]] | None,
) -> list[tuple[int, int]]:
    """The (k, i) that count."""
    kept = []
    for k, i in itertools.product(
        range(len(tables[0])), range(len(tables[0][0]) if tables[0] else 0)
    ):
        good = True
        for m in subset:
            j = tables[m][k][i]
            if exclude == "self" and j == i:
                good = False
            if exclude == "same_label" and labels[j] == labels[i]:
                good = False
            if present is not None and not (present[i][m] and present[j][m]):
                good = False
        if good:
            kept.append((k, i))
    return kept


def divergence_paths(
    fusion: Callable[[list[Tensor]], Tensor],
    latents: Sequence[Tensor],
    table: Tensor,  # [K, N] or [M, K, N]
    subset: tuple[int, ...],
    *,
    divergence: str = "jsd",
    exclude: str | None = None,
    labels: Tensor | None = None,
    present: Tensor | None = None,
    sample_weight: Tensor | None = None,
    replace: Callable[[int, int, int], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:  # [], []
    """D_S with the clean logits detached, and D_S with the perturbed logits detached."""
    tables = (table if table.ndim == 3 else table.expand(len(latents), *table.shape)).tolist()
    kept = pairs_of(
        tables,
        subset,
        exclude,
        None if labels is None else labels.tolist(),
        None if present is None else present.tolist(),
    )
    between = DEFINITIONS[divergence]
    logits = fusion(list(latents))
    zero = logits.sum() * 0
    along_perturbed, along_clean, total = zero, zero, 0.0
    for k, i in kept:
        rows = [
            z[i : i + 1]
            if m not in subset
            else z[tables[m][k][i]][None]
            if replace is None
            else replace(m, k, i)
            for m, z in enumerate(latents)
        ]
        w = fusion(rows)[0]
        weight = 1.0 if sample_weight is None else float(sample_weight[i])
        along_perturbed = along_perturbed + weight * between(logits[i].detach(), w)
        along_clean = along_clean + weight * between(logits[i], w.detach())
        total += weight
    if total == 0:
        return zero, zero
    return along_perturbed / total, along_clean / total


class Oracle:
    """Every subset's two gradients to every tensor, to be combined for any routing."""

    def __init__(
        self,
        fusion: Callable[[list[Tensor]], Tensor],
        latents: Sequence[Tensor],
        owned: Sequence[tuple[Tensor, int | None]],  # other tensors, and whose they are
        table: Tensor,  # [K, N] or [M, K, N]
        subsets: str = "all",
        *,
        paths: Callable[..., tuple[Tensor, Tensor]] = divergence_paths,
        **options,
    ):
        self.num_modalities = len(latents)
        # those that require a gradient
        self.targets = [(z, m) for m, z in enumerate(latents)] + list(owned)
        self.targets = [(x, owner) for x, owner in self.targets if x.requires_grad]
        self.subsets = subsets_of(subsets, len(latents))
        self.values, self.along_perturbed, self.along_clean = [], [], []
        for subset in self.subsets:
            perturbed, clean = paths(fusion, latents, table, subset, **options)
            self.values.append(perturbed.detach())
            self.along_perturbed.append(self._gradients_of(perturbed))
            self.along_clean.append(self._gradients_of(clean))

    def _gradients_of(self, path: Tensor) -> list[Tensor]:
        inputs = [x for x, _ in self.targets]
        if not (path.requires_grad and inputs):
            return [torch.zeros_like(x) for x in inputs]
        return torch.autograd.grad(
            path, inputs, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    def divergences(self) -> Tensor:  # [S]
        return torch.stack(self.values)

    def gradients(self, strategy: str, clean_path: str) -> list[Tensor]:
        """The gradient of L_MIPD = -sum of D_S to `targets`: the latents, the other tensors."""
        total = [torch.zeros_like(x) for x, _ in self.targets]
        for s, subset in enumerate(self.subsets):
            for t, (_, owner) in enumerate(self.targets):
                w = route(strategy, subset, owner, self.num_modalities)
                z = clean_factor(clean_path, strategy, subset, owner, self.num_modalities)
                total[t] -= w * self.along_perturbed[s][t] + z * self.along_clean[s][t]
        return [x.detach() for x in total]
