"""The losses as modules: `MCRLoss` for a training loop, and the contrastive losses alone."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, NoReturn, get_args

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from mcr_fast import _checks as checks
from mcr_fast._ceb import ceb_head, evaluate_ceb, late_ceb_head
from mcr_fast._checks import Backend, CleanPath, Divergence, Exclude, Strategy, Subsets
from mcr_fast._checks.rows import label_codes
from mcr_fast._contrastive import NTXentLoss, SupConLoss
from mcr_fast._torchscript import refuse_script
from mcr_fast._watch import ImportanceWatch, importance_of
from mcr_fast._wrapping import unbound
from mcr_fast.functional import contrastive as contrastive_loss
from mcr_fast.fusion import Additive
from mcr_fast.mipd.clean import call_fusion
from mcr_fast.mipd.draw import draw_donors
from mcr_fast.mipd.evaluate import evaluate as evaluate_mipd
from mcr_fast.mipd.evaluate import evaluate_at_once, seen_as
from mcr_fast.mipd.evaluate import runs as runs_fusion
from mcr_fast.mipd.known import KnownForms, form_of
from mcr_fast.mipd.request import ASKED_AS_SET, Fusion, Request
from mcr_fast.mipd.sharded import as_one_call
from mcr_fast.ops.regularizer import Terms, regularizer
from mcr_fast.reference._similarity import accumulation_dtype
from mcr_fast.sampling import SCHEMES, CyclicPermutations, Scheme

__all__ = ["MCRLoss", "MCROutput", "NTXentLoss", "SupConLoss"]

Contrastive = Literal["nt_xent", "sup_con"]
Perturbation = Literal["permute", "zero", "noise"]
CEBSource = Literal["logits", "labels"]
FusionMode = Literal["eval", "own"]


class MCROutput(NamedTuple):
    """What `MCRLoss` returns.

    Attributes:
        loss: mipd_weight * mipd + contrastive_weight * contrastive + ceb_weight * ceb, 0-d.
        mipd: L_MIPD = -sum of the divergences, 0-d; unweighted, as the next two.
        contrastive: L_Con, 0-d.
        ceb: L_CEB, 0-d.
        logits: [N, C], the clean logits, attached to the graph: for the task loss.
        divergences: [S], D_S of each subset in nats, detached.
        importance: [M], each modality's share of the single-modality divergences, detached.
    """

    loss: Tensor
    mipd: Tensor
    contrastive: Tensor
    ceb: Tensor
    logits: Tensor
    divergences: Tensor
    importance: Tensor


class MCRLoss(nn.Module):
    """The Multimodal Competition Regularizer: add ``.loss`` to the task and unimodal losses.

    loss = mipd_weight * L_MIPD + contrastive_weight * L_Con + ceb_weight * L_CEB

    - L_MIPD = -sum over subsets S of D_S: how much the logits change when the modalities of S come
      from another row (`functional.permuted_divergence`), as a game between the encoders.
    - L_Con: contrastive over all modalities' embeddings (`functional.nt_xent` or ``sup_con``).
    - L_CEB: mean squared error of the latents against h(y), h = Linear(C, D) - ReLU -
      Linear(D, sum D_m) without biases and D the largest latent width
      (`functional.reconstruction_loss`).

    A term of weight 0 is not computed. With L_CEB the module has parameters to give the optimizer;
    if `ceb_weight` is raised from 0 later, they are made then, and a warning says so.

    The paper's Algorithm 1 minimises task loss + u * unimodal losses + this loss. The unimodal
    losses are the task loss of a linear head on each modality's own latents, u is 1 to 3. They are
    not optional: alone, with the default weights, L_Con drives the fusion, and a modality that is
    learned slowly ends up ignored (docs/training.md has figures).

    Args:
        latent_dims: D_m, the last dimension of each modality's latents; at least 2 modalities.
        num_classes: C, the width of the logits.
        strategy: who gets which gradient of L_MIPD: a subset's own modalities get it in full, the
            others -1 (``"greedy"``), 0 (``"independent"``) or +1 (``"collaborative"``) times.
        num_permutations: K. ``"all"``: every ordered pair of rows, exact, with one donor for all of
            S. Cyclic permutations are at most N-1: a larger K takes N-1, which is exact for
            singletons.
        scheme: ``"cyclic"`` or ``"uniform"``, see `sample_permutations`.
        mipd_weight, contrastive_weight, ceb_weight: weights of the terms.
        temperature: of L_Con.
        contrastive: ``"nt_xent"`` or ``"sup_con"``.
        subsets: ``"single"``, or ``"all"`` non-empty proper ones; equal for M = 2.
        exclude: None, ``"self"`` or ``"same_label"``: pairs of rows that do not count.
        divergence: ``"jsd"``, or another one of `functional.permuted_divergence`, such as ``"mse"``
            for regression and ``"binary_jsd"`` for several labels at once.
        perturbation: ``"permute"``; for ablation ``"zero"``, the modality becomes 0, and
            ``"noise"``, K draws of normal noise with the batch's standard deviation are added.
            These two know no donor, so `exclude` has no effect on them.
        clean_path: gradient along the unperturbed logits: ``"shared"``, ``"routed"``,
            ``"detached"``.
        ceb_source: what h sees: ``"logits"``, detached, or one-hot ``"labels"``.
        shared_donor: True: all of S takes its latents from one row. False: each modality has its
            own donor (if a batch has too few rows for that, N - 1 < M, they share; and "all"
            shares).
        chunk_rows: rows that a fusion which is not linear is run on at once; None: 16 MB of input.
        fusion_mode: how the regularizer's own runs of a fusion that is not linear see its modules:
            ``"eval"``, dropout off and batch norm by its running statistics, which are not
            updated; ``"own"``, in the mode they are in. The logits are the fusion's own either way.
        backend: None for the best one, or ``"reference"``, ``"cpu"``, ``"triton"``, ``"cuda"``.

    Raises:
        ValueError, TypeError: a bad option; in `forward` also an argument of the wrong shape,
            dtype, device or value, each named.

    Note:
        The value of L_MIPD is the plain sum whatever the routing, so finite differences agree with
        its gradient only for ``"collaborative"`` with ``"shared"``. Linear fusions run in one
        kernel; for others each subset's fusion runs once, chunk by chunk, forward and backward
        inside ``forward``, so memory does not grow with K ("noise" holds its K draws). A fusion is
        what calling it computes: hooks, adapters and wrappers count. Gradient hooks hear one
        gradient a backward (docs/gradient-routing.md). Works under autocast; ``torch.compile``
        takes a linear fusion without a graph break. The same bits every run on one machine. No
        double backward.
        ``importance`` is looked at in every 16th forward that is trained on: a modality that stays
        under 2 % for 32 looks is named in a warning, once. That never waits for a device.

    Reference:
        Algorithm 1 and equations 9-13 of arXiv 2411.07335.

    Example:
        >>> import torch, mcr_fast
        >>> from torch.nn.functional import cross_entropy
        >>> mcr = mcr_fast.MCRLoss([4, 4], num_classes=3)
        >>> fusion, labels = torch.nn.Linear(8, 3), torch.tensor([0, 1, 2, 0])
        >>> heads = [torch.nn.Linear(4, 3) for _ in range(2)]  # one a modality
        >>> latents = [torch.randn(4, 4, requires_grad=True) for _ in range(2)]  # of encoders
        >>> out = mcr(latents, labels, fusion=fusion)
        >>> unimodal = sum(cross_entropy(head(z), labels) for head, z in zip(heads, latents))
        >>> loss = cross_entropy(out.logits, labels) + 3.0 * unimodal + out.loss
        >>> loss.backward()
        >>> out.importance.shape
        torch.Size([2])
    """

    ceb_head: nn.Module | None

    def __init__(
        self,
        latent_dims: Sequence[int],
        num_classes: int,
        *,
        strategy: Strategy = "greedy",
        num_permutations: int | Literal["all"] = 32,
        scheme: Scheme = "cyclic",
        mipd_weight: float = 0.1,
        contrastive_weight: float = 1.0,
        ceb_weight: float = 0.0,
        temperature: float = 0.5,
        contrastive: Contrastive = "nt_xent",
        subsets: Subsets = "all",
        exclude: Exclude | None = None,
        divergence: Divergence = "jsd",
        perturbation: Perturbation = "permute",
        clean_path: CleanPath = "shared",
        ceb_source: CEBSource = "logits",
        shared_donor: bool = False,
        chunk_rows: int | None = None,
        fusion_mode: FusionMode = "eval",
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.latent_dims = checks.latent_dims(latent_dims)
        num_classes = checks.whole("num_classes", num_classes)
        checks.divergence_options(strategy, clean_path, divergence, exclude, backend)
        checks.choice("scheme", scheme, SCHEMES)
        checks.choice("contrastive", contrastive, get_args(Contrastive))
        checks.choice("perturbation", perturbation, get_args(Perturbation))
        checks.choice("ceb_source", ceb_source, get_args(CEBSource))
        checks.choice("fusion_mode", fusion_mode, get_args(FusionMode))
        checks.enough_classes(num_classes, divergence)
        if num_permutations != "all":
            num_permutations = checks.whole("num_permutations", num_permutations)
        if chunk_rows is not None:
            chunk_rows = checks.whole("chunk_rows", chunk_rows)
        self.num_classes, self.divergence, self.backend = num_classes, divergence, backend
        self.strategy, self.clean_path = strategy, clean_path
        self.num_permutations, self.scheme = num_permutations, scheme
        self.subsets, self.exclude, self.shared_donor = subsets, exclude, shared_donor
        self.perturbation, self.chunk_rows, self.fusion_mode = perturbation, chunk_rows, fusion_mode
        self.contrastive, self.ceb_source = contrastive, ceb_source
        self.mipd_weight = checks.finite("mipd_weight", mipd_weight)
        self.contrastive_weight = checks.finite("contrastive_weight", contrastive_weight)
        self.ceb_weight = checks.finite("ceb_weight", ceb_weight)
        self.temperature = checks.positive("temperature", temperature)
        self._subsets = checks.subset_bits(subsets, len(self.latent_dims))
        self.ceb_head = ceb_head(num_classes, self.latent_dims) if self.ceb_weight != 0 else None
        self._watch = ImportanceWatch(len(self.latent_dims))
        self._known = KnownForms()

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script("MCRLoss")

    def extra_repr(self) -> str:
        """The options."""
        names = (
            *("latent_dims", "num_classes", "strategy", "num_permutations", "scheme"),
            *("mipd_weight", "contrastive_weight", "ceb_weight", "subsets", "divergence"),
        )
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)

    def forward(
        self,
        latents: Sequence[Tensor],  # M tensors [N, ..., D_m]
        labels: Tensor | None,  # [N]
        *,
        fusion: Fusion,
        logits: Tensor | None = None,  # [N, C]
        permutations: Tensor | CyclicPermutations | None = None,  # [K, N] or [M, K, N]
        embeddings: Sequence[Tensor] | None = None,  # M tensors [N, D]
        present: Tensor | None = None,  # [N, M] bool
        sample_weight: Tensor | None = None,  # [N]
        generator: torch.Generator | None = None,
    ) -> MCROutput:
        """The regularizer of one batch.

        Args:
            latents: the encoders' outputs. Averaged over their middle dimensions for L_Con and
                L_CEB.
            labels: [N]; None if nothing needs them (L_Con then takes instance labels).
            fusion: an `AdditiveFusion`, an nn.Linear over the concatenated latents, or any callable
                from the list of latents to logits [N, C] that treats rows independently.
            logits: the clean logits if they are known, computed from these latents.
            permutations: instead of a random draw: as in `functional.permuted_divergence`.
            embeddings: of one width, for L_Con; the latents if None.
            present: which modalities each row has. L_MIPD leaves out pairs that miss a permuted
                one, L_Con missing rows, L_CEB missing latents.
            sample_weight: weight of each row in L_MIPD.
            generator: source of randomness.
        """
        self._check_weights()
        given = (logits, permutations, embeddings, present, sample_weight)
        if torch.compiler.is_compiling():
            runs = self.mipd_weight != 0 and runs_fusion(fusion, self.perturbation)
            step = _uncompiled_step if runs else MCRLoss._step
            return step(self, latents, labels, fusion, *given, generator, None)
        form = None
        plain = logits is None and permutations is None and embeddings is None
        if plain and present is None and sample_weight is None:
            found = form_of(latents, labels, fusion, self.latent_dims, *self._options())
            if found is not None:
                layer, form = found
                backend = self._known.backend(form)
                if backend is not None:
                    return self._known_step(list(latents), labels, layer, generator, backend)
        return self._step(latents, labels, fusion, *given, generator, form)

    def _options(self) -> tuple[Any, ...]:
        """What the checks of a step and the choice of backend look at, beside its tensors."""
        terms = (self.mipd_weight != 0, self.contrastive_weight != 0, self.ceb_weight != 0)
        how = (self.divergence, self.strategy, self.clean_path, self.exclude, self.perturbation)
        others = (self.contrastive, type(self.temperature), self.temperature, self.backend)
        drawn = (self.num_permutations, self.scheme, self.shared_donor)
        return (*terms, *how, *others, *drawn, self.num_classes, self._subsets)

    def _known_step(
        self,
        latents: list[Tensor],
        labels: Tensor | None,
        layer: nn.Linear,
        generator: torch.Generator | None,
        backend: str,
    ) -> MCROutput:
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
        return self._output(terms, torch.zeros_like(terms.loss))

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
    ) -> MCROutput:
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
        pooled = [z if z.ndim == 2 else z.flatten(1, -2).mean(1) for z in parts]
        named = ("latents", pooled) if embeddings is None else ("embeddings", embeddings)
        flat = embeddings is None and pooled[0] is parts[0]

        def compute(request: Request) -> Terms:
            additive = seen_as(request) if self.mipd_weight != 0 else None
            terms = self._at_once(request, additive, labels, form) if flat else None
            return terms or self._one_by_one(request, additive, labels, *named)

        terms = compute(request) if self.mipd_weight == 0 else as_one_call(request, compute)
        checks.no_infinite_logits("what the fusion gives", terms.logits)
        ceb = parts[0].new_zeros((), dtype=accumulation_dtype(parts[0].dtype))
        if self.ceb_weight != 0:
            ceb = self._ceb(pooled, labels, terms.logits, present)
            terms = terms._replace(loss=torch.add(terms.loss, ceb, alpha=self.ceb_weight))
        return self._output(terms, ceb)

    def _output(self, terms: Terms, ceb: Tensor) -> MCROutput:
        loss, mipd, contrastive, logits, divergences, importance = terms
        if self.mipd_weight != 0 and loss.requires_grad:
            self._watch.see(importance)
        return MCROutput(loss, mipd, contrastive, ceb, logits, divergences, importance)

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
            subsets=self._subsets,
            exclude=self.exclude if self.exclude and self.perturbation == "permute" else "none",
            **{name: getattr(self, name) for name in ASKED_AS_SET},
        )

    def _donors(
        self, latents: list[Tensor], generator: torch.Generator | None
    ) -> tuple[Tensor | None, Tensor | None]:
        how = (self.perturbation, self.num_permutations, self.scheme, self.shared_donor)
        return draw_donors(latents, self._subsets, *how, generator)

    def _at_once(
        self,
        request: Request,
        additive: Additive | None,
        labels: Tensor | None,
        form: tuple[Any, ...] | None,
    ) -> Terms | None:
        """All terms but L_CEB in one op, None if that does not serve here."""
        if self.mipd_weight == 0 or self.contrastive_weight == 0:
            return None
        rows, device = request.num_rows(), request.latents[0].device
        if labels is None:
            classes = torch.arange(rows, device=device)
        elif labels.dtype.is_floating_point:
            return None  # NaN would equal that of its own row in another modality
        else:
            classes = label_codes(labels, rows, device)
        made = evaluate_at_once(request, additive, classes, *self._of_contrastive())
        if made is None:
            return None
        terms, backend = made
        if form is not None and self.ceb_weight == 0:
            self._known.add(form, backend)
        return terms

    def _of_contrastive(self) -> tuple[str, float, float, float]:
        """What the op of all terms takes after the classes."""
        temperature = checks.positive("temperature", self.temperature)
        return self.contrastive, temperature, self.mipd_weight, self.contrastive_weight

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
            contrastive = contrastive_loss(self.contrastive, contrasted, *how, name=name)
            weight = self.contrastive_weight
            loss = contrastive if weight == 1 else weight * contrastive
        if self.mipd_weight != 0:
            loss = torch.add(loss, mipd, alpha=self.mipd_weight)
        importance = importance_of(divergences, len(latents))
        return Terms(loss, mipd, contrastive, logits, divergences, importance)

    def _ceb(
        self, latents: list[Tensor], labels: Tensor | None, logits: Tensor, present: Tensor | None
    ) -> Tensor:
        seen = labels if self.ceb_source == "labels" else logits.detach()
        assert seen is not None, "checked"
        if self.ceb_head is None:
            self.ceb_head = late_ceb_head(self.num_classes, self.latent_dims, latents[0])
        return evaluate_ceb(self.ceb_head, latents, seen, self.num_classes, present, self.backend)

    def _check_weights(self) -> None:
        """They may be set between steps, from any library's numbers."""
        for name in ("mipd_weight", "contrastive_weight", "ceb_weight"):
            weight = getattr(self, name)
            if type(weight) is not float:
                setattr(self, name, checks.finite(name, weight))


# torch.compiler.disable, but without importing the compiler with the package. The whole step, so
# that the graph breaks once: at the engine it would break in each function on the way there.
_uncompiled_step: Callable[..., MCROutput] = _disable_dynamo(MCRLoss._step)
