"""What a step leaves for the monitor: its rows of numbers, and the means that are made of them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mcr_fast.monitor._means import Derive

# Columns of a step's row before its divergences: three weights and seven values.
TERMS = ("loss", "mipd", "contrastive", "ceb", "task", "unimodal", "mutual_information_bound")
_FIRST = 3
GRADIENTS = ("grad_task", "grad_regularizer", "grad_mipd", "grad_contrastive", "grad_cosine")
PRODUCTS = 6  # of a modality's three gradients with each other
FACTORS = 7  # columns of a backward's row before the products
NO_GRADIENT = -1.0  # in place of a norm


def per_modality(kinds: Sequence[str], modalities: Sequence[str]) -> tuple[str, ...]:
    """The names of several means of each modality, kind by kind."""
    return tuple(f"{kind}/{name}" for kind in kinds for name in modalities)


def of_terms(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[n, n if the step has task and unimodal losses, n if it has a bound; the terms, with the
    logarithm of the candidates as the last; D_m].
    """
    step, objective, bounded = rows[:, :_FIRST, None].unbind(1)
    values = rows[:, _FIRST:].clone()
    bound = TERMS.index("mutual_information_bound")
    values[:, bound] -= values[:, TERMS.index("contrastive")]
    divergences = step.expand(-1, values.shape[1] - len(TERMS))
    weights = (step.expand(-1, 4), objective.expand(-1, 2), bounded, divergences)
    return values, torch.cat(weights, 1)


def of_hits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[rows that count, for the fusion and for each modality; those that were right]."""
    counts, hits = rows.chunk(2, dim=1)
    return hits / counts, counts


def of_norms(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[not 0 in a row that was written; norm of each modality]."""
    norms = rows[:, 1:]
    return norms, ((rows[:, :1] != 0) & (norms != NO_GRADIENT)).to(rows.dtype)


def of_products(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[n, n if the task has a gradient; upstream gradients of the loss, MIPD and L_Con; the two
    weights; products of task, MIPD and L_Con for each modality: tt, tp, pp, tr, pr, rr].

    Those of MIPD are of the sum of the divergences, whose negative the loss takes.
    """
    factors, products = rows[:, :FACTORS], rows[:, FACTORS:]
    count, of_task, loss, mipd, contrastive, to_mipd, to_contrastive = factors[:, None].unbind(-1)
    f, g = -(to_mipd * loss + mipd), to_contrastive * loss + contrastive
    tt, tp, pp, tr, pr, rr = products.unflatten(1, (PRODUCTS, -1)).unbind(1)
    pp, rr, pr = _scaled(f * f, pp), _scaled(g * g, rr), _scaled(f * g, pr)
    both = (pp + 2 * pr + rr).clamp_min(0)  # rounding can leave it just below 0
    squares = tt * both
    cosine = (_scaled(f, tp) + _scaled(g, tr)) / squares.sqrt()
    values = (tt.sqrt(), both.sqrt(), pp.sqrt(), rr.sqrt(), cosine.clamp(-1, 1))
    defined = torch.where(squares == 0, 0.0, of_task)  # a gradient of 0 has no direction
    counts = count.expand_as(tt)
    weights = (of_task.expand_as(tt), counts, counts, counts, defined)
    return torch.cat(values, 1), torch.cat(weights, 1)


def _scaled(factor: Tensor, x: Tensor) -> Tensor:
    """Their product; what nobody asked for adds nothing, whatever it is."""
    return torch.where(factor == 0, 0.0, factor * x)


class Kind:
    """A kind of row: its width, the names of its means, and how they are made."""

    def __init__(self, width: int, names: tuple[str, ...], derive: Derive) -> None:
        self.width, self.names, self.derive = width, names, derive


def kinds(modalities: Sequence[str]) -> dict[str, Kind]:
    """The four kinds of a monitor, in the order of what it reads."""
    count = len(modalities)
    accuracies = ("accuracy", *per_modality(("unimodal_accuracy",), modalities))
    named: dict[str, Any] = {
        "terms": (_FIRST, (*TERMS, *per_modality(("divergence",), modalities)), of_terms),
        "hits": (1 + count, accuracies, of_hits),
        "norms": (1, per_modality(("grad_norm",), modalities), of_norms),
    }
    made = {
        k: Kind(extra + len(names), names, derive) for k, (extra, names, derive) in named.items()
    }
    width = FACTORS + PRODUCTS * count
    return made | {"products": Kind(width, per_modality(GRADIENTS, modalities), of_products)}
