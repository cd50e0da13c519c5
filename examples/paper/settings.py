"""What a run is made with, when it ends, and where it is."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Settings:
    """What a run is made with; a checkpoint of other settings is refused.

    Attributes:
        data, method, fold, seed, start: what is trained, on what, and from where.
        source: the names of the files that say which examples there are.
        rows: examples for training, validation and test.
        content: a digest of these examples (`runs.Data.content`).
        allow_missing: whether examples without their files were left out.
        learning_rate, batch_size, lr_warmup_steps, clip_norm, amp: of the steps.
    """

    data: str
    method: str
    fold: int
    seed: int
    start: str
    source: str
    rows: tuple[int, ...]
    content: str
    allow_missing: bool
    learning_rate: float
    batch_size: int
    lr_warmup_steps: int
    clip_norm: float | None
    amp: bool


# A stage that starts from another one's weights needs these to be the same; how the steps of the
# first one were made is its own matter.
OF_DATA = ("data", "fold", "seed", "source", "rows", "content", "allow_missing")


def differences(found: Mapping[str, Any], wanted: Settings, names: tuple[str, ...] = ()) -> str:
    """What was found and is not what is wanted, by name; nothing if all agree.

    Args:
        found: settings that were saved. One that is not among them differs.
        wanted: those of this run.
        names: the ones to compare, by default all.
    """
    now = asdict(wanted)
    then = {key: tuple(v) if isinstance(v, list) else v for key, v in found.items()}
    compared = names or tuple(now | then)
    return ", ".join(
        f"{name}={then.get(name)!r} instead of {now.get(name)!r}"
        for name in compared
        if name not in then or name not in now or then[name] != now[name]
    )


@dataclass(frozen=True)
class Limits:
    """When a run ends and how it runs: none of it changes what a step computes."""

    epochs: int
    patience: int
    device: str = "cpu"
    workers: int = 0
    save_every: int = 200  # steps

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, got {getattr(self, name)}")


@dataclass
class State:
    """Where a run is."""

    epoch: int = 0
    batch: int = 0  # of the epoch, the next one
    loss_sum: float = 0.0  # of the epoch's batches
    best_epoch: int = -1
    best_score: float = -math.inf
    history: list[dict[str, float]] = field(default_factory=list)
