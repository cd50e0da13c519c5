"""The task losses of `MCRObjective`: means over rows, which may have weights."""

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mcr_fast import _checks as checks
from mcr_fast.reference._similarity import accumulation_dtype

TaskName = Literal["classification", "multilabel", "regression"]
Task = TaskName | Callable[[Tensor, Any], Tensor]
RegressionLoss = Literal["mse", "l1"]

# The divergence that compares outputs as the task reads them.
DIVERGENCE_OF = {"classification": "jsd", "multilabel": "binary_jsd", "regression": "mse"}


class TaskLoss(nn.Module):
    """cross_entropy, binary_cross_entropy_with_logits, mse_loss or l1_loss, or a callable.

    Without weights of rows it is what torch's function gives; of no row it is 0.
    """

    class_weight: Tensor | None

    def __init__(
        self,
        task: Task,
        num_classes: int,
        label_smoothing: float = 0.0,
        class_weight: Any = None,
        regression_loss: RegressionLoss = "mse",
    ) -> None:
        super().__init__()
        if not callable(task):
            checks.choice("task", task, get_args(TaskName))
        checks.choice("regression_loss", regression_loss, get_args(RegressionLoss))
        self.task, self.num_classes = task, num_classes
        self.regression_loss = regression_loss
        self.label_smoothing = checks.finite("label_smoothing", label_smoothing)
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing must be in 0..1, got {label_smoothing!r}")
        has_classes = task in ("classification", "multilabel")
        if not has_classes and (self.label_smoothing != 0 or class_weight is not None):
            raise ValueError(
                "label_smoothing and class_weight are for task='classification' and 'multilabel', "
                f"got task={task!r}"
            )
        if class_weight is not None:
            class_weight = _checked_class_weight(class_weight, num_classes)
        self.register_buffer("class_weight", class_weight, persistent=False)

    def extra_repr(self) -> str:
        """The task."""
        return f"task={self.task!r}, label_smoothing={self.label_smoothing}"

    def check(self, labels: Any, num_rows: int, device: torch.device) -> bool:
        """Raise for labels that are none of the task's; whether no row is known to lack one."""
        if callable(self.task):
            return False
        return checks.task_labels(self.task, labels, num_rows, self.num_classes, device)

    def forward(
        self,
        logits: Tensor,  # [N, C]
        labels: Any,  # of the task
        row_weight: Tensor | None = None,  # [N]
    ) -> Tensor:  # []
        """The mean over the rows, or their weighted mean; 0 if the weights are."""
        logits = logits.to(accumulation_dtype(logits.dtype))
        if callable(self.task):
            return self._called(logits, labels, row_weight)
        if len(logits) == 0:
            return logits.sum()
        if row_weight is None:
            return self._losses(logits, labels, "mean")
        losses = self._losses(logits, labels, "none")
        losses = losses if losses.ndim == 1 else losses.mean(1)
        return _weighted_mean(losses, self._counts(labels), row_weight)

    def _losses(self, logits: Tensor, labels: Tensor, reduction: str) -> Tensor:  # [], [N], [N, C]
        """What torch's function gives."""
        weight = self._weight_on(logits)
        smoothing = self.label_smoothing
        if self.task == "classification":
            labels = labels.to(logits.dtype if labels.dtype.is_floating_point else torch.int64)
            how: dict[str, Any] = {"weight": weight, "label_smoothing": smoothing}
            return F.cross_entropy(logits, labels, reduction=reduction, **how)
        targets = labels.to(logits.dtype).view_as(logits)
        if self.task == "multilabel":
            if smoothing != 0:
                targets = targets + smoothing * (0.5 - targets)
            given = (logits, targets, weight)
            return F.binary_cross_entropy_with_logits(*given, reduction=reduction)
        loss = F.mse_loss if self.regression_loss == "mse" else F.l1_loss
        return loss(logits, targets, reduction=reduction)

    def _counts(self, labels: Tensor) -> Tensor | None:  # [N]
        """What each row counts in torch's mean; None for 1."""
        if self.task != "classification" or labels.dtype.is_floating_point:
            return None
        labels = labels.to(torch.int64)  # in uint8 -100 would be class 156
        counts = labels != checks.IGNORED_LABEL
        if self.class_weight is not None:
            counts = counts * self.class_weight[labels.clamp(min=0)]
        return counts

    def _weight_on(self, logits: Tensor) -> Tensor | None:  # [C]
        """The class weight, beside the logits from now on: there may be nothing else to move."""
        if self.class_weight is None:
            return None
        if self.class_weight.device != logits.device:
            self.class_weight = self.class_weight.to(logits.device)
        return self.class_weight.to(logits.dtype)

    def _called(self, logits: Tensor, labels: Any, row_weight: Tensor | None) -> Tensor:
        losses: Tensor = self.task(logits, labels)  # type: ignore[operator]
        if not isinstance(losses, Tensor) or tuple(losses.shape) not in ((), (len(logits),)):
            got = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(f"task must return one loss, or one a row [N], got {got}")
        if row_weight is not None:
            if losses.ndim == 0:
                raise ValueError(
                    "task must return one loss a row, [N], for sample_weight or present, got one "
                    "for all; take reduction='none'"
                )
            return _weighted_mean(losses, None, row_weight)
        if losses.ndim == 0:
            return losses
        return losses.mean() if len(losses) > 0 else losses.sum()


def _checked_class_weight(class_weight: Any, num_classes: int) -> Tensor:  # [C]
    weight = torch.as_tensor(class_weight).detach()
    weight = weight if weight.dtype.is_floating_point else weight.to(torch.get_default_dtype())
    checks.shaped("class_weight", weight, (num_classes,), "[C]")
    return weight.clone()


def _weighted_mean(losses: Tensor, counts: Tensor | None, weight: Tensor) -> Tensor:  # [N] -> []
    weight = weight.to(losses.dtype)
    total = (weight if counts is None else weight * counts).sum()
    return (weight * losses).sum() / total.masked_fill(total == 0, 1)


def check_fit(task: Task, divergence: str) -> None:
    """Raise for a divergence of the regularizer that reads the outputs as another task does."""
    if callable(task):
        return
    wanted = DIVERGENCE_OF[task]
    if divergence != wanted:
        raise ValueError(
            f"loss must have divergence={wanted!r} for task={task!r}, got {divergence!r}; "
            f"make it with MCRLoss(..., divergence={wanted!r}), or pass task= a callable"
        )


def apart(labels: Tensor, *, one_hot: bool) -> Tensor:  # [N] int64
    """With a code of its own for each row without a label, which is like no other row."""
    if one_hot:
        checks.all_labelled(labels)
        return labels
    others = checks.IGNORED_LABEL - 1 - torch.arange(labels.shape[0], device=labels.device)
    return torch.where(labels == checks.IGNORED_LABEL, others, labels)
