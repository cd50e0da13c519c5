"""What a step of `MCRLoss` is made of: its checks, its donors, and the terms one way or another."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mcr_fast import _checks as checks
from mcr_fast._ceb import drift_looked_for, evaluate_ceb, settled
from mcr_fast._checks.rows import label_codes
from mcr_fast._options import MCROptions
from mcr_fast._watch import importance_of
from mcr_fast._wrapping import unbound, with_idle
from mcr_fast.functional import contrastive as contrastive_loss
from mcr_fast.fusion import Additive
from mcr_fast.mipd.clean import call_fusion
from mcr_fast.mipd.draw import draw_donors
from mcr_fast.mipd.evaluate import evaluate as evaluate_mipd
from mcr_fast.mipd.evaluate import evaluate_at_once, seen_as
from mcr_fast.mipd.known import KnownForms
from mcr_fast.mipd.request import ASKED_AS_SET, Fusion, Request
from mcr_fast.mipd.sharded import as_one_call
from mcr_fast.ops.regularizer import Terms, regularizer
from mcr_fast.reference._similarity import accumulation_dtype
from mcr_fast.sampling import CyclicPermutations


def average_over_middle(z: Tensor) -> Tensor:  # [N, ..., D] -> [N, D]
    """What a loss or a head that knows rows alone takes of latents with more dimensions."""
    return z if z.ndim == 2 else z.flatten(1, -2).mean(1)


def _added(loss: Tensor, term: Tensor, weight: float) -> Tensor:
    """With the term's weight, which in a graph compiled for any is no constant of an op."""
    if torch.compiler.is_compiling():
        return loss + weight * term
    return torch.add(loss, term, alpha=weight)


class MCRTerms(MCROptions):
    """Makes the terms, and L_CEB beside them, which no op makes with the others."""

    _known: KnownForms

    def _known_step(
        self,
        latents: list[Tensor],
        labels: Tensor | None,
        layer: nn.Linear,
        generator: torch.Generator | None,
        backend: str,
    ) -> tuple[Terms, Tensor]:
        """A step of a form that `_step` took in one op of this backend."""
        order, donors = self._donors(latents, generator)
        options = (self._subsets, self.strategy, self.clean_path, self.divergence)
        if labels is None:
            labels = torch.arange(len(latents[0]), device=layer.weight.device)
        elif labels.dtype is not torch.int64:
            labels = labels.to(torch.int64)
        codes = labels if self.exclude == "same_label" else None
        terms = regularizer(
            latents,
            layer.weight,
            layer.bias,
            (order, donors, codes, None, None, *options, self.exclude or "none"),
            labels,
            *self._of_contrastive(),
            backend=backend,
        )
        checks.no_infinite_logits("what the fusion gives", terms.logits)
        return terms, torch.zeros_like(terms.loss)

    def _step(
        self,
        latents: Sequence[Tensor],
        labels: Tensor | None,
        fusion: Fusion,
        logits: Tensor | None,
        permutations: Tensor | CyclicPermutations | None,
        embeddings: Sequence[Tensor] | None,
        present: Tensor | None,
        sample_weight: Tensor | None,
        generator: torch.Generator | None,
        form: tuple[Any, ...] | None,  # to be known from now on, if one op takes the step
    ) -> tuple[Terms, Tensor]:
        """A step of any form."""
        parts, codes = checks.batch(
            (latents, fusion, logits, embeddings, labels, present, sample_weight),
            self.latent_dims,
            self.num_classes,
            contrasts=self.contrastive_weight != 0,
            same_label=self.exclude == "same_label",
            ceb_labels=self.ceb_weight != 0 and self.ceb_source == "labels",
        )
        given = (logits, permutations, present, sample_weight, generator)
        request = self._request(parts, codes, unbound(fusion), *given)
        pooled = [average_over_middle(z) for z in parts]
        named = ("latents", pooled) if embeddings is None else ("embeddings", embeddings)
        flat = embeddings is None and pooled[0] is parts[0]

        def evaluate(request: Request) -> Terms:
            additive = seen_as(request) if self.mipd_weight != 0 else None
            terms = self._at_once(request, additive, labels, form) if flat else None
            return terms or self._one_by_one(request, additive, labels, *named)

        terms = evaluate(request) if self.mipd_weight == 0 else as_one_call(request, evaluate)
        checks.no_infinite_logits("what the fusion gives", terms.logits)
        ceb = parts[0].new_zeros((), dtype=accumulation_dtype(parts[0].dtype))
        if self.ceb_weight != 0:
            ceb = self._ceb(pooled, labels, terms.logits, present)
            terms = terms._replace(loss=_added(terms.loss, ceb, self.ceb_weight))
        if embeddings is not None and self.contrastive_weight == 0:
            terms = terms._replace(loss=with_idle(terms.loss, embeddings))
        if not terms.loss.requires_grad:
            # no term connects it to anything: so that it can go backward, with zeros
            ends = [z for z in parts if z.requires_grad] or [terms.logits]
            terms = terms._replace(loss=with_idle(terms.loss, ends))
        return terms, ceb

    def _request(
        self,
        latents: list[Tensor],
        codes: Tensor | None,
        fusion: Fusion,
        logits: Tensor | None,
        permutations: Tensor | CyclicPermutations | None,
        present: Tensor | None,
        sample_weight: Tensor | None,
        generator: torch.Generator | None,
    ) -> Request:
        """What the engine is asked, the donors drawn if there is anything to do with them."""
        order = donors = None
        if permutations is not None:
            order, donors = checks.given_donors(permutations, self.perturbation, latents)
        elif self.mipd_weight != 0:
            order, donors = self._donors(latents, generator)
        return Request(
            latents=latents,
            fusion=fusion,
            logits=logits,
            order=order,
            donors=donors,
            codes=codes,
            present=present,
            sample_weight=sample_weight,
            generator=generator,
            rank=self._rank(),
            fixed=not self.training,
            subsets=self._subsets,
            exclude=self.exclude if self.exclude and self.perturbation == "permute" else "none",
            **{name: getattr(self, name) for name in ASKED_AS_SET},
        )

    def _donors(
        self, latents: list[Tensor], generator: torch.Generator | None
    ) -> tuple[Tensor | None, Tensor | None]:
        how = (self.perturbation, self.num_permutations, self.scheme, self.shared_donor)
        return draw_donors(latents, self._subsets, *how, generator, self._rank(), not self.training)

    def _at_once(
        self,
        request: Request,
        additive: Additive | None,
        labels: Tensor | None,
        form: tuple[Any, ...] | None,
    ) -> Terms | None:
        """All terms but L_CEB in one op, None if that does not serve here."""
        if self.mipd_weight == 0 or self.contrastive_weight == 0 or self._over_ranks:
            return None
        rows, device = request.num_rows(), request.latents[0].device
        if labels is None:
            classes = torch.arange(rows, device=device)
        elif labels.dtype.is_floating_point:
            return None  # NaN would equal that of its own row in another modality
        else:
            classes = label_codes(labels, rows, device)
        *how, of_mipd, of_contrastive = self._of_contrastive()
        compiling = torch.compiler.is_compiling()
        # an op's float is a constant of its graph: a schedule would compile one graph a step
        weights = (1.0, 1.0) if compiling else (of_mipd, of_contrastive)
        made = evaluate_at_once(request, additive, classes, *how, *weights)
        if made is None:
            return None
        terms, backend = made
        if compiling:
            terms = terms._replace(
                loss=_added(of_contrastive * terms.contrastive, terms.mipd, of_mipd)
            )
        if form is not None and self.ceb_weight == 0:
            self._known.add(form, backend)
        return terms

    def _of_contrastive(self) -> tuple[str, float, float, float]:
        """What the op of all terms takes after the classes."""
        return self.contrastive, self.temperature, self.mipd_weight, self.contrastive_weight

    def _one_by_one(
        self,
        request: Request,
        additive: Additive | None,
        labels: Tensor | None,
        name: str,
        contrasted: Sequence[Tensor],
    ) -> Terms:
        """All terms but L_CEB; those of no weight are 0."""
        latents, logits = request.latents, request.logits
        mipd = contrastive = loss = latents[0].new_zeros(
            (), dtype=accumulation_dtype(latents[0].dtype)
        )
        divergences = loss.new_zeros(len(self._subsets))
        if self.mipd_weight != 0:
            mipd, divergences, logits = evaluate_mipd(request, additive)
        elif logits is None:
            logits = call_fusion(request.fusion, latents, self.num_classes)
        if self.contrastive_weight != 0:
            how = (labels, self.temperature, request.present, self.backend)
            given = (self.contrastive, contrasted, *how, name, self._ranks())
            contrastive = contrastive_loss(*given)
            weight = self.contrastive_weight
            loss = contrastive if weight == 1 else weight * contrastive
        if self.mipd_weight != 0:
            loss = _added(loss, mipd, self.mipd_weight)
        importance = importance_of(divergences, len(latents))
        return Terms(loss, mipd, contrastive, logits, divergences, importance)

    def _ceb(
        self, latents: list[Tensor], labels: Tensor | None, logits: Tensor, present: Tensor | None
    ) -> Tensor:
        seen = labels if self.ceb_source == "labels" else logits.detach()
        assert seen is not None, "checked"
        head = self.ceb_head
        if head is None:
            raise ValueError(
                "ceb_head must be a module where ceb_weight is not 0, got None; setting ceb_weight "
                "makes one"
            )
        if self._head_is_late:
            self._head_is_late = not settled(head, latents[0])
        trains = self.training and torch.is_grad_enabled()
        if self._head_may_drift and trains and not torch.compiler.is_compiling():
            self._head_may_drift = not drift_looked_for(head)
        return evaluate_ceb(head, latents, seen, self.num_classes, present, self.backend)
