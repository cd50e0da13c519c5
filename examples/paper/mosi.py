"""CMU-MOSI and CMU-MOSEI: sentiment from -3 to 3 of spoken opinions, as feature files.

What the published experiments read (kkontras/MCR, datasets/Factor_CL_Datasets) are MultiBench's
files, aligned by words: mosi_data.pkl with 20 video, 5 audio and 300 text features (GloVe) a
step, and mosei_senti_data.pkl with 35, 74 and 300. Each is a pickled dict of "train", "valid" and
"test", each a dict of arrays: "vision", "audio", "text" [n, 50, features], "labels" [n, 1, 1].
Shorter utterances have zeros at the front.

MMSA's files, aligned_50.pkl and unaligned_50.pkl, are read as well: there the labels are
"regression_labels" [n], "text" are features of BERT [n, 50, 768], and shorter utterances have
zeros at the end. They are other features, with which the published figures cannot be compared.

As in that code: infinite audio features become 0, utterances whose text features sum to 0 are left
out, the steps without text are cut from all three modalities, nothing is normalised, and a batch
is filled up with zeros at the end. Files that are not aligned have each modality cut on its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from paper.clips import Split
from paper.features import read_pickle
from paper.files import missing_error

KEYS = {"video": "vision", "text": "text", "audio": "audio"}
SPLITS = {"train": "train", "validation": "valid", "test": "test"}
FILES = {
    "mosi": ("mosi_data.pkl", "aligned_50.pkl", "unaligned_50.pkl"),
    "mosei": ("mosei_senti_data.pkl", "aligned_50.pkl", "unaligned_50.pkl"),
}
LAYOUT = """
{0}    MultiBench's features, which the published experiments read; or else
aligned_50.pkl or unaligned_50.pkl    MMSA's
"""
Sample = tuple[tuple[Tensor, ...], Tensor]


class Sentiment(Dataset[Sample]):
    """((features of each modality [steps, width]), sentiment [], float32).

    Args:
        root: a feature file, or a folder with one; `data` says which name is looked for.
        split: "train", "validation" or "test".
        data: "mosi" or "mosei".
        modalities: which of "video", "text" and "audio", in which order.
        content: of the file, for who has read it already.

    Attributes:
        source: the file.
        widths: features of each modality.
        aligned: whether all modalities have the same steps.
        dropped: utterances without text.

    Raises:
        FileNotFoundError: there is no such file; it says which are looked for.
        ValueError: a file that is not what it should be, by its name.
    """

    def __init__(
        self,
        root: Path | str,
        split: Split,
        *,
        data: str = "mosi",
        modalities: Sequence[str] = ("video", "text", "audio"),
        content: Any = None,
    ) -> None:
        unknown = [name for name in modalities if name not in KEYS]
        if unknown or not modalities:
            raise ValueError(f"modalities must be of {tuple(KEYS)}, got {tuple(modalities)}")
        self.source = feature_file(Path(root), data)
        content = read_pickle(self.source) if content is None else content
        arrays = _split_of(content, SPLITS[split], self.source)
        labels = arrays["labels"].reshape(len(arrays["labels"]), -1)[:, 0]
        kept = arrays["text"].reshape(len(labels), -1).sum(1) != 0
        self.aligned = len({arrays[key].shape[1] for key in KEYS.values()}) == 1
        self.dropped = int((~kept).sum())
        self.modalities = tuple(modalities)
        self.widths = tuple(arrays[KEYS[name]].shape[2] for name in modalities)
        self.labels = torch.from_numpy(labels[kept])
        self.spans = {key: _spans(arrays, key, self.aligned)[kept] for key in KEYS.values()}
        self.keys = [KEYS[name] for name in modalities]
        self.arrays = {key: torch.from_numpy(arrays[key][kept]) for key in self.keys}

    def set_epoch(self, epoch: int) -> None:
        """Nothing: the features are not augmented."""

    def identity(self) -> bytes:
        """Which utterances these are: their labels, and which steps of them count."""
        spans = b"".join(self.spans[key].tobytes() for key in sorted(self.spans))
        return self.labels.numpy().tobytes() + spans

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Sample:
        features = []
        for key in self.keys:
            start, end = self.spans[key][index]
            features.append(self.arrays[key][index, start:end])
        return tuple(features), self.labels[index]


def collate(samples: Sequence[Sample]) -> tuple[list[Tensor], Tensor]:
    """Features of each modality [N, longest, width], zeros at the end, and labels [N]."""
    features, labels = zip(*samples, strict=True)
    padded = [pad_sequence(list(x), batch_first=True) for x in zip(*features, strict=True)]
    return padded, torch.stack(labels)


def feature_file(root: Path, data: str) -> Path:
    """The file itself, or the first of the known names in a folder."""
    if root.is_file():
        return root
    names = FILES[data]
    for name in names:
        if (root / name).exists():
            return root / name
    raise missing_error(root, LAYOUT.format(names[0]), root / names[0])


def _split_of(content: Any, split: str, path: Path) -> dict[str, np.ndarray]:
    """The arrays of a split, float32 and finite, and "labels" whoever made the file."""
    part = content.get(split) if isinstance(content, Mapping) else None
    if not isinstance(part, Mapping):
        raise ValueError(
            f"{path}: no dict with {split!r}, which is one of {tuple(SPLITS.values())}"
        )
    labels = "labels" if "labels" in part else "regression_labels"
    arrays = {}
    for key, name in (*((key, key) for key in KEYS.values()), ("labels", labels)):
        if name not in part:
            wanted = "'labels' or 'regression_labels'" if key == "labels" else repr(name)
            raise ValueError(f"{path}: {split!r} has no {wanted}")
        array = np.asarray(part[name], dtype=np.float32)
        if key == "labels" and not np.isfinite(array).all():
            raise ValueError(f"{path}: {name!r} of {split!r} has labels that are not finite")
        arrays[key] = np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)
        if array.ndim != 3 and key != "labels":
            raise ValueError(
                f"{path}: {name!r} of {split!r} must be [n, steps, features], got {array.shape}"
            )
    if "text_bert" in part:  # [n, 3, steps]: tokens, mask, segments
        arrays["mask"] = np.array(part["text_bert"])[:, 1].astype(bool)
    for key in ("audio", "vision"):
        if f"{key}_lengths" in part:
            arrays[f"{key}_lengths"] = np.array(part[f"{key}_lengths"]).astype(np.int64)
    sizes = {len(array) for array in arrays.values()}
    if len(sizes) != 1 or sizes == {0}:
        raise ValueError(
            f"{path}: {split!r} must have as many rows everywhere, got {sorted(sizes)}"
        )
    return arrays


def _spans(arrays: Mapping[str, np.ndarray], key: str, aligned: bool) -> np.ndarray:  # [n, 2]
    """From the first step with a feature to after the last one; one step at least."""
    source = "text" if aligned else key
    steps = (arrays[source] != 0).any(2)
    if source == "text" and "mask" in arrays:
        steps = arrays["mask"]
    elif f"{source}_lengths" in arrays:
        steps = np.arange(steps.shape[1]) < arrays[f"{source}_lengths"][:, None]
    length = steps.shape[1]
    if not aligned or "mask" in arrays:
        end = length - steps[:, ::-1].argmax(1)
    else:  # MultiBench's files are filled up at the front only
        end = np.full(len(steps), length)
    start = np.minimum(steps.argmax(1), length - 1)
    nothing = ~steps.any(1)
    return np.stack([np.where(nothing, 0, start), np.where(nothing, 1, end)], axis=1)
