"""What a prediction is measured by: accuracy, or the usual figures of sentiment."""

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor


def of_classes(logits: Tensor, labels: Tensor) -> dict[str, float]:  # [N, C], [N]
    """accuracy: the share of rows whose largest logit is their class."""
    return {"accuracy": (logits.argmax(1) == labels).double().mean().item()}


def of_sentiment(predicted: Tensor, labels: Tensor) -> dict[str, float]:  # [N, 1], [N]
    """The figures of the published code.

    - mae: mean |predicted - label|.
    - corr: Pearson's correlation; NaN if one of them is constant.
    - acc2, f1: positive against negative, without the rows of label 0; a prediction of 0 counts as
      negative. F1 of each class weighted by its rows, as scikit-learn's ``average="weighted"``. The
      published code calls that with labels and predictions exchanged, which weighs the classes by
      the predictions; here they are in their order.
    - acc2_has0, f1_has0: the same of all rows, positive against not positive, as there. Others
      count 0 as positive ("non-negative"): compare with care.
    - acc7, acc5: rounded and cut at 3 and at 2, the share of equal ones.
    """
    values, truth = (x.double().flatten().numpy() for x in (predicted, labels))
    figures = {"mae": float(np.abs(values - truth).mean()), "corr": _correlation(values, truth)}
    for name, rows in (("", truth != 0), ("_has0", np.ones_like(truth, dtype=bool))):
        positive, wanted = values[rows] > 0, truth[rows] > 0
        figures[f"acc2{name}"] = figures[f"f1{name}"] = float("nan")
        if rows.any():
            figures[f"acc2{name}"] = float((positive == wanted).mean())
            weighted = f1_score(wanted, positive, average="weighted", zero_division=0)
            figures[f"f1{name}"] = float(weighted)
    for name, most in (("acc7", 3.0), ("acc5", 2.0)):
        cut = [np.round(np.clip(x, -most, most)) for x in (values, truth)]
        figures[name] = float((cut[0] == cut[1]).mean())
    return figures


def _correlation(values: np.ndarray, truth: np.ndarray) -> float:
    if values.std() == 0 or truth.std() == 0:
        return float("nan")
    return float(np.corrcoef(values, truth)[0, 1])


def score(figures: dict[str, float], by: str) -> float:
    """What a better epoch has more of."""
    return -figures[by] if by == "mae" else figures[by]


def gathered(parts: list[Tensor]) -> Tensor:
    """Batches joined, in float32 on the CPU."""
    return torch.cat(parts).float().cpu()
