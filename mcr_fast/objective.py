"""Algorithm 1 as one module: task loss, unimodal losses and regularizer."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch._compile import _disable_dynamo

from mcr_fast import _checks as checks
from mcr_fast._checkpointing import factor_of_step
from mcr_fast._released import read_released
from mcr_fast._schedule import Schedule, Unit, Window
from mcr_fast._task import RegressionLoss, Task, TaskLoss, apart, check_fit
from mcr_fast._torchscript import refuse_script
from mcr_fast._unimodal import NO_HEADS, Head, checked_heads, unimodal_losses
from mcr_fast._wrapping import with_idle
from mcr_fast.mipd.request import Fusion
from mcr_fast.modules import MCRLoss, MCROutput

__all__ = ["MCRObjective", "ObjectiveOutput"]


class ObjectiveOutput(NamedTuple):
    """What `MCRObjective` returns: all that `MCRLoss` does, and the losses beside it.

    Attributes:
        loss: task + sum of unimodal_weight * unimodal + schedule * (mipd_weight * mipd +
            contrastive_weight * contrastive + ceb_weight * ceb), 0-d: the whole objective.
        mipd: L_MIPD, 0-d; unweighted, as the next two. 0 outside of the schedule's window.
        contrastive: L_Con, 0-d.
        ceb: L_CEB, 0-d.
        logits: [N, C], the fusion's clean logits, attached to the graph.
        divergences: [S], D_S of each subset in nats, detached.
        importance: [M], each modality's share of the single-modality divergences, detached.
        task: the task loss of the logits, 0-d.
        unimodal: [M], the task loss of each modality's own head, unweighted; 0 without one.
        unimodal_logits: the heads' logits [N, C], M of them; None for those without a head.
    """

    loss: Tensor
    mipd: Tensor
    contrastive: Tensor
    ceb: Tensor
    logits: Tensor
    divergences: Tensor
    importance: Tensor
    task: Tensor
    unimodal: Tensor
    unimodal_logits: tuple[Tensor | None, ...]


class MCRObjective(nn.Module):
    """Algorithm 1 of the paper, the loss to call ``backward`` on.

    loss = task(f(Z_1..Z_M), y) + sum over m of unimodal_weight_m * task(head_m(Z_m), y)
           + schedule(t) * regularizer

    - task: `cross_entropy`, or the loss of another task.
    - The unimodal losses: the same loss of a head on each modality's own latents, for training
      only. They are what keeps a slow modality alive (docs/training.md has figures).
    - regularizer: `MCRLoss`, as it was made. The schedule is 1 unless a warm-up or a window is
      asked for; outside of the window the regularizer is not computed.

    Args:
        loss: the regularizer; its `divergence` has to be that of the task, ``"jsd"`` for
            classification, ``"binary_jsd"`` for several labels at once, ``"mse"`` for regression.
        unimodal_weight: of the unimodal losses, a number or one a modality; about three times the
            loss's `contrastive_weight` is a place to start (docs/training.md has figures).
        task: ``"classification"``: labels [N] class numbers (-100 leaves a row out), or [N, C]
            probabilities. ``"multilabel"``: labels [N, C] in 0..1, binary cross entropy with
            logits, mean over C. ``"regression"``: labels [N, C], or [N] for C = 1. Or a callable
            from logits [N, C] and the labels, whatever they are, to one loss a row [N], or to
            their mean.
        label_smoothing: of the class labels, 0 to 1.
        class_weight: [C], as torch's losses of the first two tasks take it as ``weight``.
        regression_loss: ``"mse"`` or ``"l1"``; the published runs of MOSI and MOSEI take l1.
        warmup: the regularizer counts t / warmup in the t-th training forward of the window.
        window: (start, end), the end not included, None for no end: when the regularizer counts.
        unit: what the window is counted in, ``"step"``, a training forward, or ``"epoch"``, of
            which `set_epoch` tells.
        share_labels: whether the regularizer compares rows by the task's labels: rows of equal
            label are then L_Con's positives. None: if they are class numbers, in classification
            and with a callable. False: instance labels. True: by any [N] or [N, 1] labels. A row
            of -100 in classification is then like no other row; ``ceb_source="labels"`` refuses it
            (on a GPU, where no value is read, L_CEB is NaN).

    Raises:
        ValueError, TypeError: a bad option, or a task that the loss does not fit; in `forward` also
            an argument of the wrong shape, dtype, device or value, each named.

    Note:
        Training forwards are those in training mode that record gradients, of every micro-batch
        when gradients are accumulated; a checkpointed function's second run is none. Their number
        and the epoch are in the `state_dict`, as one int64 tensor. Nothing waits for a device. With
        a warm-up or a window in steps, ``torch.compile`` breaks the graph once, to count. Losses
        are computed in float32 at least. What only a term outside of the window or of weight 0
        trains, L_CEB's head, a modality's head that is a module or the way to `embeddings`, gets a
        zero gradient, so that data-parallel training goes on.

    Reference:
        Algorithm 1 of arXiv 2411.07335.

    Example:
        >>> import torch, mcr_fast
        >>> objective = mcr_fast.MCRObjective(mcr_fast.MCRLoss([4, 4], num_classes=3), warmup=100)
        >>> fusion, labels = torch.nn.Linear(8, 3), torch.tensor([0, 1, 2, 0])
        >>> heads = torch.nn.ModuleList([torch.nn.Linear(4, 3) for _ in range(2)])
        >>> latents = [torch.randn(4, 4, requires_grad=True) for _ in range(2)]  # of encoders
        >>> out = objective(latents, labels, fusion=fusion, unimodal_heads=heads)
        >>> out.loss.backward()
        >>> out.unimodal.shape, objective.regularizer_weight
        (torch.Size([2]), 0.02)
    """

    def __init__(
        self,
        loss: MCRLoss,
        *,
        unimodal_weight: float | Sequence[float] = 1.0,
        task: Task = "classification",
        label_smoothing: float = 0.0,
        class_weight: Tensor | Sequence[float] | None = None,
        regression_loss: RegressionLoss = "mse",
        warmup: int = 0,
        window: Window | None = None,
        unit: Unit = "step",
        share_labels: bool | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(loss, MCRLoss):
            raise TypeError(f"loss must be an MCRLoss, got {type(loss).__name__}")
        of_classes = (label_smoothing, class_weight, regression_loss)
        self.task_loss = TaskLoss(task, loss.num_classes, *of_classes)
        check_fit(task, loss.divergence)
        self.loss = loss
        self.unimodal_weight = unimodal_weight
        self.schedule = Schedule(warmup, window, unit)
        self.share_labels = share_labels
        self._warned = False
        # In a tuple, so that it is no submodule: it has neither parameters nor a state.
        self._outside_of_window = (_without_terms(loss),)

    @classmethod
    def from_released_config(
        cls,
        config: Mapping[str, Any],
        latent_dims: Sequence[int] | None = None,
        num_classes: int | None = None,
        **overrides: Any,
    ) -> "MCRObjective":
        """The objective that a configuration of the published code describes.

        Args:
            config: as `MCRLoss.from_released_config` takes it. Of it the objective reads
                ``multil`` or ``multi_loss`` (the unimodal weights), ``starting_epoch`` and
                ``ending_epoch`` (which is included there), ``contr_type`` and the task.
            latent_dims: if the configuration does not say them.
            num_classes: the same.
            overrides: options of `MCRObjective` and of `MCRLoss`, instead of the configuration's.

        Example:
            >>> import mcr_fast
            >>> config = {"l": 0.1, "multil": 0.01, "num_samples": 32, "reg_by": "greedy"}
            >>> mcr_fast.MCRObjective.from_released_config(config, [512, 512], 6).unimodal_weight
            (0.01, 0.01)
        """
        given = {name: overrides.pop(name) for name in OPTIONS if name in overrides}
        of_loss, of_objective = read_released(config, latent_dims, num_classes, overrides)
        return cls(MCRLoss(**of_loss), **{**of_objective, **given})

    def __prepare_scriptable__(self) -> NoReturn:
        refuse_script("MCRObjective")

    @property
    def unimodal_weight(self) -> tuple[float, ...]:
        """Of each modality's own loss; may be set, to a number or one a modality."""
        return self._unimodal_weight

    @unimodal_weight.setter
    def unimodal_weight(self, value: Any) -> None:
        num_modalities = len(self.loss.latent_dims)
        # a collection of any library, such as an array of NumPy
        several = hasattr(value, "__getitem__") and getattr(value, "ndim", 1) == 1
        if several and not isinstance(value, (str, Mapping)):
            if len(value) != num_modalities:
                raise ValueError(
                    f"unimodal_weight must be a number or {num_modalities} of them, one a "
                    f"modality, got {len(value)}"
                )
            weights = tuple(checks.finite("unimodal_weight", each) for each in value)
        else:
            weights = (checks.finite("unimodal_weight", value),) * num_modalities
        self._unimodal_weight = weights

    @property
    def regularizer_weight(self) -> float:
        """What the regularizer is multiplied by in the next training forward."""
        return self.schedule.factor()

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch begins, counted from 0, for a window in epochs."""
        self.schedule.set_epoch(epoch)

    def get_extra_state(self) -> Tensor:  # [3] int64
        """The schedule's counters; a tensor, which every format of checkpoints can hold."""
        at = self.schedule
        return torch.tensor([at.steps, at.steps_in_window, at.epoch])

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from a checkpoint's counters."""
        self.schedule.set(*(int(number) for number in state))

    def extra_repr(self) -> str:
        """The options."""
        at = self.schedule
        return (
            f"unimodal_weight={self.unimodal_weight}, warmup={at.warmup}, window={at.window}, "
            f"unit={at.unit!r}"
        )

    def forward(
        self,
        latents: Sequence[Tensor],  # M tensors [N, ..., D_m]
        labels: Any,  # [N], or what the task takes
        *,
        fusion: Fusion,
        unimodal_heads: Iterable[Head | None] | None = None,
        contrastive_labels: Tensor | None = None,  # [N]
        present: Tensor | None = None,  # [N, M] bool
        sample_weight: Tensor | None = None,  # [N]
        **given: Any,
    ) -> ObjectiveOutput:
        """The objective of one batch.

        Args:
            latents: the encoders' outputs; for the heads averaged over their middle dimensions.
            labels: of the task.
            fusion: as `MCRLoss` takes it.
            unimodal_heads: M modules or callables from latents [N, D_m] to logits [N, C], None for
                a modality without one.
            contrastive_labels: what the regularizer compares rows by, instead of what
                `share_labels` says.
            present: which modalities each row has, as in `MCRLoss`; the unimodal loss of one is
                over the rows that have it.
            sample_weight: weight of each row in the task losses and in L_MIPD.
            given: what else `MCRLoss.forward` takes: logits, permutations, embeddings, generator.
        """
        heads = self._heads(unimodal_heads)
        rows, labelled = self._checked_rows(latents, labels)
        weight: float | Tensor | None  # None: outside of the window
        if torch.compiler.is_compiling() and self.schedule.counts:
            weight = _uncompiled_factor(self, rows)
        else:
            weight = self._factor() or None
        loss = self._outside() if weight is None else self.loss
        masks = {"present": present, "sample_weight": sample_weight}
        compared = self._compared(labels, contrastive_labels, labelled)
        out: MCROutput = loss(latents, compared, fusion=fusion, **masks, **given)
        task = self.task_loss(out.logits, labels, sample_weight)
        wanted = [head if w else None for head, w in zip(heads, self._unimodal_weight, strict=True)]
        losses, logits = unimodal_losses(
            self.task_loss, self.loss.num_classes, latents, labels, wanted, task, **masks
        )
        total = task
        for unimodal_weight, unimodal, head in zip(
            self._unimodal_weight, losses, heads, strict=True
        ):
            if unimodal_weight != 0:
                total = torch.add(total, unimodal, alpha=unimodal_weight)
            elif isinstance(head, nn.Module):
                total = with_idle(total, head.parameters())
        if weight is None:  # of what only the regularizer trains
            embeddings = given.get("embeddings") or ()
            total = with_idle(total, [*self.loss.parameters(), *embeddings])
        elif isinstance(weight, Tensor):
            total = total + weight * out.loss
        else:
            total = torch.add(total, out.loss, alpha=weight)
        return ObjectiveOutput(total, *out[1:7], task, torch.stack(losses), logits)

    def _outside(self) -> MCRLoss:
        """What runs outside of the window, with the options of the loss that an output shows."""
        kept, loss = self._outside_of_window[0], self.loss
        if kept.subsets != loss.subsets or kept.divergence != loss.divergence:
            kept.subsets, kept.divergence = loss.subsets, loss.divergence
        return kept

    def _factor(self) -> float:
        """The schedule's factor for this forward, which is counted if it is trained on."""
        at = self.schedule
        if torch.compiler.is_compiling():
            return 1.0 if at.open else 0.0  # to count would specialise the graph
        if not (self.training and torch.is_grad_enabled()):
            return at.factor()
        return factor_of_step(at.count, lambda: at.last)

    def _checked_rows(self, latents: Any, labels: Any) -> tuple[Tensor | None, bool]:  # [N, ...]
        """The first modality's latents, if they are any, with which the labels were compared.

        And whether every row is known to have a class number.
        """
        if not isinstance(latents, Sequence) or len(latents) == 0:
            return None, False  # which the regularizer refuses
        first = latents[0]
        if not isinstance(first, Tensor) or first.ndim == 0:
            return None, False
        return first, self.task_loss.check(labels, first.shape[0], first.device)

    def _heads(self, heads: Any) -> list[Head | None]:
        """One a modality; without any a warning, once."""
        num_modalities = len(self.loss.latent_dims)
        if heads is not None:
            return checked_heads(heads, num_modalities)
        told = self._warned or not self.training or torch.compiler.is_compiling()
        if not told and any(weight != 0 for weight in self._unimodal_weight):
            self._warned = True
            warnings.warn(NO_HEADS, UserWarning, stacklevel=5)
        return [None] * num_modalities

    def _compared(
        self, labels: Any, given: Tensor | None, labelled: bool = False
    ) -> Tensor | None:  # [N]
        """The labels that the regularizer gets; `labelled`: no row is known to lack one."""
        if given is not None:
            return given
        loss, share, shape = self.loss, self.share_labels, tuple(getattr(labels, "shape", ()))
        sees_labels = loss.ceb_weight != 0 and loss.ceb_source == "labels"
        if share is None:
            numbers = isinstance(labels, Tensor) and not labels.dtype.is_floating_point
            share = numbers and len(shape) == 1 and self.task_loss.task not in _NO_NUMBERS
        if share:
            if not isinstance(labels, Tensor) or not (len(shape) == 1 or shape[1:] == (1,)):
                raise ValueError(
                    f"labels must be [N] or [N, 1] for share_labels=True, got {list(shape)}; give "
                    "the regularizer contrastive_labels= of its own"
                )
            labels = labels.flatten()
            if self.task_loss.task == "classification" and not labels.dtype.is_floating_point:
                labels = labels.to(torch.int64)
                labels = labels if labelled else apart(labels, one_hot=sees_labels)
            return labels
        needed_by = "exclude='same_label'" if loss.exclude == "same_label" else None
        if sees_labels:
            needed_by = "ceb_source='labels'"
        if needed_by:
            raise ValueError(
                f"contrastive_labels must be given, class numbers [N], for {needed_by} of the "
                "loss: the task's labels are none, or share_labels is False"
            )
        return None


OPTIONS = (
    *("unimodal_weight", "task", "label_smoothing", "class_weight", "regression_loss"),
    *("warmup", "window", "unit", "share_labels"),
)
_NO_NUMBERS = ("multilabel", "regression")  # tasks whose labels are no class numbers


def _without_terms(loss: MCRLoss) -> MCRLoss:
    """What checks a batch and runs the fusion, and nothing else."""
    return MCRLoss(
        loss.latent_dims,
        loss.num_classes,
        mipd_weight=0.0,
        contrastive_weight=0.0,
        divergence=loss.divergence,
        subsets=loss.subsets,
    )


def _factor_tensor(objective: MCRObjective, like: Tensor | None) -> Tensor | None:
    """The factor as a tensor, of which compiled code does not know the value; None for 0."""
    factor = objective._factor()
    if factor == 0 or like is None:
        return None
    return torch.full((), factor, device=like.device)


# As in modules.py: torch.compiler.disable, but without importing the compiler with the package.
_uncompiled_factor: Callable[..., Tensor | None] = _disable_dynamo(_factor_tensor)
