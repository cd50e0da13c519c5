"""What a step leaves for the monitor: its rows of numbers, and the means that are made of them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from mcr_fast.monitor._means import Derive

TERMS = ("loss", "mipd", "contrastive", "ceb", "task", "mutual_information_bound")
GRADIENTS = ("grad_task", "grad_regularizer", "grad_mipd", "grad_contrastive", "grad_cosine")
PRODUCTS = 6  # of a modality's three gradients with each other
FACTORS = 8  # columns of a backward's row before the products
NO_GRADIENT = -1.0  # in place of a norm


def per_modality(kinds: Sequence[str], modalities: Sequence[str]) -> tuple[str, ...]:
    """The names of several means of each modality, kind by kind."""
    return tuple(f"{kind}/{name}" for kind in kinds for name in modalities)


def of_terms(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[n, -n or 0 for each term, n or 0 for each modality's own loss; the terms, with the logarithm
    of the candidates as the last; D_m; the own losses].

    0 says that the step did not have it, -n that it did not if it is exactly 0: a term that is not
    computed is a 0 without a gradient.
    """
    terms, at = len(TERMS), TERMS.index("contrastive")
    modalities = (rows.shape[1] - 2 * terms) // 3
    parts = (terms, modalities, terms, modalities, modalities)
    of_terms, of_own, values, divergences, own = rows.split(parts, 1)
    logarithm, values = values[:, -1:], values[:, :-1]
    of_bound = values[:, at : at + 1]
    computed = torch.cat((values, of_bound), 1) != 0  # NaN is
    of_terms = torch.where(of_terms < 0, -of_terms * computed, of_terms)
    values = torch.cat((values, logarithm - of_bound, divergences, own), 1)
    of_divergences = of_terms[:, TERMS.index("mipd")][:, None].expand_as(divergences)
    return values, torch.cat((of_terms, of_divergences, of_own), 1)


def of_hits(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[rows that count, for the fusion and for each modality; those that were right]."""
    counts, hits = rows.chunk(2, dim=1)
    return hits / counts, counts


def of_norms(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[not 0 in a row that was written; norm of each modality]."""
    norms = rows[:, 1:]
    return norms, ((rows[:, :1] != 0) & (norms != NO_GRADIENT)).to(rows.dtype)


def of_products(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[n, n if the task's gradient is known, n if that of L_Con is; upstream gradients of the loss,
    MIPD and L_Con; the two weights; products of task, MIPD and L_Con for each modality: tt, tp, pp,
    tr, pr, rr].

    Those of MIPD are of the sum of the divergences, whose negative the loss takes.
    """
    factors, products = rows[:, :FACTORS], rows[:, FACTORS:]
    count, of_task, of_both, loss, mipd, contrastive, to_mipd, to_contrastive = factors[
        :, None
    ].unbind(-1)
    f, g = -(to_mipd * loss + mipd), to_contrastive * loss + contrastive
    tt, tp, pp, tr, pr, rr = products.unflatten(1, (PRODUCTS, -1)).unbind(1)
    pp, rr, pr = _scaled(f * f, pp), _scaled(g * g, rr), _scaled(f * g, pr)
    both = (pp + 2 * pr + rr).clamp_min(0)  # rounding can leave it just below 0
    squares = tt * both
    cosine = (_scaled(f, tp) + _scaled(g, tr)) / squares.sqrt()
    values = (tt.sqrt(), both.sqrt(), pp.sqrt(), rr.sqrt(), cosine.clamp(-1, 1))
    # a gradient of 0 has no direction
    defined = torch.where((squares == 0) | (of_both == 0), 0.0, of_task)
    every, of_task, of_both = (x.expand_as(tt) for x in (count, of_task, of_both))
    weights = (of_task, of_both, every, of_both, defined)
    return torch.cat(values, 1), torch.cat(weights, 1)


def _scaled(factor: Tensor, x: Tensor) -> Tensor:
    """Their product; what nobody asked for adds nothing, whatever it is."""
    return torch.where(factor == 0, 0.0, factor * x)


class Kind:
    """A kind of row: the widths of its parts, the names of its means, and how they are made."""

    def __init__(
        self, parts: tuple[int | None, ...], names: tuple[str, ...], derive: Derive
    ) -> None:
        self.parts, self.names, self.derive = parts, names, derive


def kinds(modalities: Sequence[str]) -> dict[str, Kind]:
    """The four kinds of a monitor, in the order of what it reads."""
    count, terms = len(modalities), len(TERMS)
    of_each = per_modality(("divergence", "unimodal_loss"), modalities)
    accuracies = ("accuracy", *per_modality(("unimodal_accuracy",), modalities))
    norms, gradients = (per_modality(x, modalities) for x in (("grad_norm",), GRADIENTS))
    return {
        "terms": Kind(
            (terms + count, *(None,) * terms, count, count), (*TERMS, *of_each), of_terms
        ),
        "hits": Kind((1 + count, 1 + count), accuracies, of_hits),
        "norms": Kind((1 + count,), norms, of_norms),
        "products": Kind((*(None,) * FACTORS, PRODUCTS * count), gradients, of_products),
    }
