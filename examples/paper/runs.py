"""What is trained on what: the data sets, their encoders, and what the published runs set."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from mcr_fast.recipes import PUBLISHED, Recipe
from paper.ave import Ave
from paper.clips import Split
from paper.cremad import CremaD
from paper.features import read_pickle
from paper.mosi import Sentiment, collate, feature_file
from paper.resnet import ResNet18, SequenceTransformer

SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Run:
    """One data set with the settings of its published runs.

    Attributes:
        recipe: of the multimodal stage; its optimizer serves all.
        modalities: in the order of the published encoders.
        unimodal_rate: learning rate of the unimodal stage.
        scratch_rate: of every method from random weights. Published are the joint, multi-loss and
            unimodal runs; MCR starts there from unimodal training on CREMA-D and AVE.
        unimodal_epochs, epochs: at most.
        unimodal_patience, patience: epochs without a better validation after which it ends.
        by: the figure of the validation that is compared: "accuracy", or "mae", of which less is
            better.
    """

    recipe: Recipe
    modalities: tuple[str, ...]
    unimodal_rate: float
    scratch_rate: float
    unimodal_epochs: int
    epochs: int
    unimodal_patience: int
    patience: int
    by: str

    @property
    def regression(self) -> bool:
        """Whether it is sentiment."""
        return self.recipe.task == "regression"


def _clips(name: str, *, unimodal_epochs: int, patience: int) -> Run:
    return Run(
        PUBLISHED[name],
        ("audio", "video"),
        unimodal_rate=1e-3,
        scratch_rate=1e-3,
        unimodal_epochs=unimodal_epochs,
        epochs=1500,
        unimodal_patience=100,
        patience=patience,
        by="accuracy",
    )


def _sentiment(name: str, *modalities: str) -> Run:
    return Run(
        PUBLISHED[name],
        modalities,
        unimodal_rate=1e-4,
        scratch_rate=1e-4,
        unimodal_epochs=100,
        epochs=100,
        unimodal_patience=30,
        patience=30,
        by="mae",
    )


RUNS = {
    "cremad": _clips("crema_d/resnet18", unimodal_epochs=1500, patience=25),
    "ave": _clips("ave/resnet18", unimodal_epochs=1000, patience=150),
    "mosi-vt": _sentiment("mosi_vt/transformer", "video", "text"),
    "mosi-vta": _sentiment("mosi_vta/transformer", "video", "text", "audio"),
    "mosei-vt": _sentiment("mosei_vt/transformer", "video", "text"),
    "mosei-vta": _sentiment("mosei_vta/transformer", "video", "text", "audio"),
}


@dataclass(frozen=True)
class Data:
    """The three splits, how a batch of them is made, and the width of each modality's input."""

    train: Dataset[Any]
    validation: Dataset[Any]
    test: Dataset[Any]
    collate: Callable[..., Any] | None
    widths: tuple[int, ...]

    @property
    def parts(self) -> tuple[Any, ...]:
        """The splits in their order."""
        return self.train, self.validation, self.test

    @property
    def rows(self) -> tuple[int, ...]:
        """Examples of each split."""
        return tuple(len(part) for part in self.parts)

    @property
    def source(self) -> str:
        """The names of the files that say which examples there are, without their folder."""
        return ", ".join(dict.fromkeys(part.source.name for part in self.parts))

    @property
    def content(self) -> str:
        """A digest of which examples are in which split, and of their labels."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(hashlib.sha256(part.identity()).digest())
        return digest.hexdigest()[:12]

    def describe(self) -> str:
        """A line for people."""
        sizes = [f"{rows} {split}" for rows, split in zip(self.rows, SPLITS, strict=True)]
        return f"{', '.join(sizes)}; from {self.train.source}"  # type: ignore[attr-defined]


def open_data(
    name: str,
    root: Path,
    modalities: Sequence[str],
    *,
    fold: int = 0,
    allow_missing: bool = False,
    seed: int = 0,
) -> Data:
    """All splits, so that what is missing anywhere is an error before anything is trained."""
    if RUNS[name].regression:
        data = name.split("-")[0]
        content = read_pickle(feature_file(root, data))
        options: dict[str, Any] = {"data": data, "modalities": modalities, "content": content}
        parts = [Sentiment(root, split, **options) for split in SPLITS]
        return Data(parts[0], parts[1], parts[2], collate, parts[0].widths)
    options = {"modalities": modalities, "allow_missing": allow_missing, "seed": seed}
    if name == "cremad":
        clips: list[Dataset[Any]] = [CremaD(root, split, fold=fold, **options) for split in SPLITS]
    else:
        clips = [Ave(root, split, **options) for split in SPLITS]
    widths = tuple(1 if modality == "audio" else 3 for modality in modalities)
    return Data(clips[0], clips[1], clips[2], None, widths)


def encoder(run: Run, width: int) -> nn.Module:
    """The published one, from an input of that many channels or features to the latents."""
    return SequenceTransformer(width) if run.regression else ResNet18(width)
