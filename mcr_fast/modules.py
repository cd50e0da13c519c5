"""The losses as modules: `MCRLoss` for a training loop, and the contrastive losses alone."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, NoReturn

import torch
from torch import Tensor
from torch._compile import _disable_dynamo

from mcr_fast import _checks as checks
from mcr_fast._ceb import ceb_head
from mcr_fast._checks import Backend, CleanPath, Divergence, Exclude, Strategy, Subsets
from mcr_fast._checks.ranks import Exchange
from mcr_fast._contrastive import NTXentLoss, SupConLoss
from mcr_fast._options import CEBSource, Contrastive, FusionMode, Perturbation
from mcr_fast._released import loss_options
from mcr_fast._terms import MCRTerms
from mcr_fast._torchscript import refuse_script
from mcr_fast._watch import ImportanceWatch
from mcr_fast._wrapping import with_idle
from mcr_fast.mipd.evaluate import runs as runs_fusion
from mcr_fast.mipd.known import KnownForms, form_of
from mcr_fast.mipd.request import Fusion
from mcr_fast.ops._modes import refuse_programs
from mcr_fast.ops.regularizer import Terms
from mcr_fast.sampling import CyclicPermutations, Scheme

__all__ = ["MCRLoss", "MCROutput", "NTXentLoss", "SupConLoss"]


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


class MCRLoss(MCRTerms):
    """The Multimodal Competition Regularizer: add ``.loss`` to the task and unimodal losses.

    loss = mipd_weight * L_MIPD + contrastive_weight * L_Con + ceb_weight * L_CEB

    - L_MIPD = -sum over subsets S of D_S: how much the logits change when the modalities of S come
      from another row (`functional.permuted_divergence`), as a game between the encoders.
    - L_Con: contrastive over all modalities' embeddings (`functional.nt_xent` or ``sup_con``).
    - L_CEB: mean squared error of the latents against h(y), h = Linear(C, D) - ReLU -
      Linear(D, sum D_m) without biases and D the largest latent width
      (`functional.reconstruction_loss`).

    A term of weight 0 is not computed. With L_CEB the module has parameters to give the optimizer;
    if `ceb_weight` is raised from 0 later, they are made then, and a warning says so. Options are
    attributes that can be set between steps, such as weights by a schedule, and are checked as at
    first; the sizes cannot.

    In eval mode the donors (and noise) are the same for the same sizes in every call, by a fixed
    seed, and no random number generator is moved; with `generator` they are drawn from that. The
    values are comparable from one evaluation to the next, and need no gradient: call it under
    ``torch.no_grad()`` or ``torch.inference_mode()`` and none is made.

    The paper's Algorithm 1 minimises task loss + u * unimodal losses + this loss, which
    `MCRObjective` adds up. The unimodal losses are the task loss of a linear head on each
    modality's own latents, u about three times `contrastive_weight`. They are not optional: alone,
    with the default weights, L_Con drives the fusion, and a modality that is learned slowly ends
    up ignored (docs/training.md has figures).

    Args:
        latent_dims: D_m, the last dimension of each modality's latents; at least 2 modalities.
        num_classes: C, the width of the logits.
        strategy: who gets which gradient of L_MIPD: a subset's own modalities get it in full, the
            others -1 (``"greedy"``), 0 (``"independent"``) or +1 (``"collaborative"``) times.
        num_permutations: K. ``"all"``: every ordered pair of rows, exact, with one donor for all of
            S. Cyclic permutations are at most N-1: a larger K takes N-1, which is exact for
            singletons. docs/estimator.md says what a K costs and is worth.
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
        process_group, exchange, rows: L_Con over the rows of all ranks, as in `functional.nt_xent`;
            L_MIPD and L_CEB stay means over this rank's rows, and each rank draws its own donors
            from generators in equal states. Every rank of the group has to call the loss
            (docs/distributed.md).
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
        process_group: Any = None,
        exchange: Exchange = "gather",
        rows: int | None = None,
        backend: Backend | None = None,
    ) -> None:
        super().__init__()
        self.latent_dims = checks.latent_dims(latent_dims)
        self.num_classes = num_classes = checks.whole("num_classes", num_classes)
        self.strategy, self.clean_path, self.divergence = strategy, clean_path, divergence
        self.exclude, self.backend, self.subsets = exclude, backend, subsets
        self.scheme, self.contrastive, self.perturbation = scheme, contrastive, perturbation
        self.ceb_source, self.fusion_mode, self.shared_donor = ceb_source, fusion_mode, shared_donor
        self.num_permutations, self.chunk_rows = num_permutations, chunk_rows
        self.mipd_weight, self.contrastive_weight = mipd_weight, contrastive_weight
        self.ceb_weight, self.temperature = ceb_weight, temperature
        self.ceb_head = ceb_head(num_classes, self.latent_dims) if self.ceb_weight != 0 else None
        self._set_ranks(process_group, exchange, rows)
        self._watch = ImportanceWatch(len(self.latent_dims))
        self._known = KnownForms()

    @classmethod
    def from_released_config(
        cls,
        config: Mapping[str, Any],
        latent_dims: Sequence[int] | None = None,
        num_classes: int | None = None,
        **overrides: Any,
    ) -> "MCRLoss":
        """The regularizer that a configuration of the published code describes.

        Args:
            config: the option names of the published code: ``l``, ``contr_coeff``, ``lib`` (the
                weights, 0 if absent), ``num_samples`` (K), ``temperature``, ``reg_by`` or ``regby``
                (the strategy, in its short or long spelling), ``shuffle_type`` and ``contr_type``;
                flat, or nested as ``model.args.bias_infusion``. An outer value goes before an inner
                one. What `MCRObjective.from_released_config` reads is accepted, for it alone.
            latent_dims: if the configuration does not say them.
            num_classes: the same.
            overrides: options of `MCRLoss`, instead of the configuration's; permutations are
                independent, ``scheme="uniform"``, as in the published code.

        Raises:
            ValueError, TypeError: an option that is not known, named beside those that are.

        Example:
            >>> import mcr_fast
            >>> config = {"l": 0.1, "num_samples": 32, "reg_by": "ind", "contr_coeff": 1}
            >>> mcr_fast.MCRLoss.from_released_config(config, [512, 512], 6).strategy
            'independent'
        """
        return cls(**loss_options(config, latent_dims, num_classes, overrides))

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script("MCRLoss")

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
            generator: source of randomness; torch's default one if None, in eval mode none at all.
        """
        given = (logits, permutations, embeddings, present, sample_weight)
        if torch.compiler.is_compiling():
            runs = self.mipd_weight != 0 and runs_fusion(fusion, self.perturbation)
            if runs:
                refuse_programs("MCRLoss")
            step = _uncompiled_step if runs or self._over_ranks else MCRLoss._whole_step
            return step(self, latents, labels, fusion, *given, generator, None)
        form = None
        plain = logits is None and permutations is None and embeddings is None
        plain = plain and not self._over_ranks
        if plain and present is None and sample_weight is None:
            found = form_of(latents, labels, fusion, self.latent_dims, *self._key())
            if found is not None:
                layer, form = found
                backend = self._known.backend(form)
                if backend is not None:
                    known = (list(latents), labels, layer, generator, backend)
                    return self._whole_known_step(*known)
        return self._whole_step(latents, labels, fusion, *given, generator, form)

    # As deep as each other below the caller, whose line a warning names.
    def _whole_step(self, *given: Any) -> MCROutput:
        return self._output(*self._step(*given))

    def _whole_known_step(self, *given: Any) -> MCROutput:
        return self._output(*self._known_step(*given))

    def _output(self, terms: Terms, ceb: Tensor) -> MCROutput:
        loss, mipd, contrastive, logits, divergences, importance = terms
        if self.training and self.mipd_weight != 0 and loss.requires_grad:
            self._watch.see(importance)
        if self.ceb_weight == 0 and self.ceb_head is not None:
            loss = with_idle(loss, self.ceb_head.parameters())
        return MCROutput(loss, mipd, contrastive, ceb, logits, divergences, importance)


# torch.compiler.disable, but without importing the compiler with the package. The whole step, so
# that the graph breaks once: at the engine it would break in each function on the way there.
_uncompiled_step: Callable[..., MCROutput] = _disable_dynamo(MCRLoss._whole_step)
# what torch says where a graph may not break
_uncompiled_step.__dict__.update(
    _torchdynamo_disable=True,
    _torchdynamo_disable_msg="MCRLoss runs this fusion on its own and differentiates inside its "
    "forward; compile without fullgraph=True, or take a linear fusion (nn.Linear, AdditiveFusion "
    "without head)",
)
