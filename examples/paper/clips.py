"""What CREMA-D and AVE have in common: a spectrogram and a few frames of each clip."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from paper.files import missing_error, names_in
from paper.images import read_frames

Split = Literal["train", "validation", "test"]
MODALITIES = ("audio", "video")


@dataclass(frozen=True)
class Clip:
    """One example; `start` and `end` in seconds, of the part that counts."""

    name: str
    label: int
    wav: Path
    frames: Path  # a folder
    start: int = 0
    end: int | None = None


class Clips(Dataset[tuple[tuple[Tensor, ...], int]]):
    """((spectrogram [1, 257, time], frames [num_frames, 3, 224, 224]), class number), float32.

    Args:
        clips: all of them are there.
        spectrogram: of a clip, [257, time].
        num_frames: of each clip.
        modalities: which of the two, in which order; what is left out is not read.
        augment: whether frames get random boxes. They depend on `seed`, the epoch and the index
            alone, so that a run that goes on, or has other workers, sees the same.
        seed: of the augmentation.
    """

    def __init__(
        self,
        clips: Sequence[Clip],
        spectrogram: Callable[[Clip], Tensor],
        *,
        num_frames: int,
        modalities: Sequence[str] = MODALITIES,
        augment: bool,
        seed: int = 0,
    ) -> None:
        unknown = [name for name in modalities if name not in MODALITIES]
        if unknown or not modalities:
            raise ValueError(f"modalities must be of {MODALITIES}, got {tuple(modalities)}")
        self.clips = list(clips)
        self.spectrogram = spectrogram
        self.num_frames = num_frames
        self.modalities = tuple(modalities)
        self.augment, self.seed, self.epoch = augment, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Other random boxes for another epoch."""
        self.epoch = epoch

    def identity(self) -> bytes:
        """Which clips these are, with their labels and times."""
        return repr([(x.name, x.label, x.start, x.end) for x in self.clips]).encode()

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, ...], int]:
        clip = self.clips[index]
        inputs = []
        for modality in self.modalities:
            if modality == "audio":
                inputs.append(self.spectrogram(clip)[None])
            else:
                inputs.append(read_frames(clip.frames, self.num_frames, self._rng(index)))
        return tuple(inputs), clip.label

    def _rng(self, index: int) -> np.random.Generator | None:
        return np.random.default_rng([self.seed, self.epoch, index]) if self.augment else None


def those_there(
    clips: Sequence[Clip],
    root: Path,
    layout: str,
    modalities: Sequence[str],
    *,
    source: Path,
    allow_missing: bool,
) -> list[Clip]:
    """The clips, which `source` lists, after a look for their files.

    Raises:
        FileNotFoundError: one is not there, unless that is allowed; or none of them is.
        ValueError: there are none.
    """
    if not clips:
        raise ValueError(f"{source} has no clip for this split")
    folders = {path for clip in clips for path in (clip.wav.parent, clip.frames.parent)}
    names = {folder: names_in(folder) for folder in folders}

    def lacking(clip: Clip) -> Path | None:
        for modality, path in zip(MODALITIES, (clip.wav, clip.frames), strict=True):
            if modality in modalities and path.name not in names[path.parent]:
                return path
        return None

    absent = [path for clip in clips if (path := lacking(clip))]
    if absent and (not allow_missing or len(absent) == len(clips)):
        wavs = sum(clip.wav.name not in names[clip.wav.parent] for clip in clips)
        frames = sum(clip.frames.name not in names[clip.frames.parent] for clip in clips)
        counts = {}
        if "audio" in modalities:
            counts["WAV files"] = (wavs, len(clips))
        if "video" in modalities:
            counts["folders of frames"] = (frames, len(clips))
        raise missing_error(root, layout, absent[0], counts)
    return [clip for clip in clips if not lacking(clip)]
