"""CREMA-D: acted emotions, 6 classes, from speech and from the face.

Folder:

    AudioWAV/<clip>.wav                 as in the data set's repository, 16 kHz
    Image-01-FPS/<clip>/<number>.jpg    frames, one for each second, in the order of their names
    data_splits_VALV.pkl                five folds (JSON, in spite of its name)
    train.csv, test.csv                 instead of the folds: lines of <clip>,<emotion>

A clip is called such as 1001_DFA_ANG_XX: actor, sentence, emotion, level. The folds keep actors
apart and are those of the published experiments; the two lists are those of OGM-GE (CVPR 2022),
in which train and test share actors. With the lists the last tenth of train.csv is for validation.

As in the code of arXiv 2411.07335 (kkontras/MCR, datasets/CREMAD): 22,050 Hz, 3 s (shorter
clips are repeated), STFT of 512 samples every 353, 3 frames of 224 x 224.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch import Tensor

from paper.audio import log_magnitude, read_wav, tiled
from paper.clips import MODALITIES, Clip, Clips, Split, those_there
from paper.files import lines_of, missing_error

CLASSES = ("NEU", "HAP", "SAD", "FEA", "DIS", "ANG")
RATE, SECONDS, NUM_FRAMES = 22050, 3, 3
FOLDS, LISTS = "data_splits_VALV.pkl", ("train.csv", "test.csv")
NUM_FOLDS = 5
LAYOUT = f"""
AudioWAV/<clip>.wav                 the audio
Image-01-FPS/<clip>/<number>.jpg    frames, one for each second
{FOLDS}                the published folds, or instead of them
train.csv, test.csv                 lines of <clip>,<emotion>
"""


class CremaD(Clips):
    """One split of one fold.

    Args:
        root: the folder that the module describes.
        split: "train", "validation" or "test".
        fold: 0 to 4, of the published folds; has to be 0 with the two lists.
        modalities: which of "audio" and "video", in which order.
        allow_missing: leave out clips without their files, unless all are without.
        seed: of the augmentation.

    Attributes:
        source: the file that the split was read from.

    Raises:
        FileNotFoundError: what is missing, how many, and what is expected where.
        ValueError: a file that is not what it should be, by its name.
    """

    def __init__(
        self,
        root: Path | str,
        split: Split,
        *,
        fold: int = 0,
        modalities: Sequence[str] = MODALITIES,
        allow_missing: bool = False,
        seed: int = 0,
    ) -> None:
        root = Path(root)
        names, self.source = _names(root, split, fold)
        clips = [_clip(root, name, self.source) for name in names]
        super().__init__(
            those_there(
                clips, root, LAYOUT, modalities, source=self.source, allow_missing=allow_missing
            ),
            spectrogram,
            num_frames=NUM_FRAMES,
            modalities=modalities,
            augment=split == "train",
            seed=seed,
        )


def spectrogram(clip: Clip) -> Tensor:  # [257, 188]
    """Of three seconds."""
    return log_magnitude(tiled(read_wav(clip.wav, RATE), RATE * SECONDS))


def _clip(root: Path, name: str, source: Path) -> Clip:
    parts = name.split("_")
    if len(parts) < 3 or parts[2] not in CLASSES:
        raise ValueError(f"{source}: {name!r} is no clip's name, such as 1001_DFA_ANG_XX")
    wav, frames = root / "AudioWAV" / f"{name}.wav", root / "Image-01-FPS" / name
    return Clip(name, CLASSES.index(parts[2]), wav, frames)


def _names(root: Path, split: Split, fold: int) -> tuple[list[str], Path]:
    """The clips of a split, and the file that says so."""
    if (root / FOLDS).exists():
        return _of_fold(root / FOLDS, split, fold), root / FOLDS
    train, test = (root / name for name in LISTS)
    if not (train.exists() and test.exists()):
        first = test if train.exists() else root / FOLDS
        raise missing_error(root, LAYOUT, first)
    if fold != 0:
        raise ValueError(f"fold must be 0 with {train.name} and {test.name}, got {fold}")
    source = test if split == "test" else train
    names = [line.split(",")[0] for _, line in lines_of(source)]
    if split != "test":
        cut = int(len(names) * 0.9)
        names = names[:cut] if split == "train" else names[cut:]
    return names, source


def _of_fold(path: Path, split: Split, fold: int) -> list[str]:
    """{"1": {"train": ["1001_DFA_ANG_XX.wav-0", ...], "val": ..., "test": ...}, "2": ...}."""
    if not 0 <= fold < NUM_FOLDS:
        raise ValueError(f"fold must be 0 to {NUM_FOLDS - 1}, got {fold}")
    key = "val" if split == "validation" else split
    try:
        entries: Iterable[str] = json.loads(path.read_text(encoding="utf-8"))[str(fold + 1)][key]
    except (ValueError, KeyError, TypeError) as error:  # JSON's error and UTF-8's are ValueErrors
        what = f"no JSON with {key!r} of fold {str(fold + 1)!r}"
        raise ValueError(f"{path}: {what} ({error!r})") from error
    # What follows the dash is a rating; the published code takes the emotion from the name.
    return [entry.split(".wav")[0] for entry in entries]
