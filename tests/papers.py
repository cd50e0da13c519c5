"""Tiny files in the formats of the paper's data sets, for their loaders."""

import json
import pickle
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from programs import ROOT
from scipy.io import wavfile

sys.path.append(str(ROOT / "examples"))  # for the package `paper`

SPLITS = ("train", "validation", "test")


def write_wav(path: Path, rate: int, seconds: float, seed: int = 0, channels: int = 1) -> None:
    """Noise of 16 bits."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (round(rate * seconds), channels)[: 1 + (channels > 1)]
    noise = np.random.default_rng(seed).normal(0, 0.1, shape)
    wavfile.write(path, rate, (noise * 32767).astype(np.int16))


def write_frames(folder: Path, count: int, seed: int = 0, size: tuple[int, int] = (40, 30)) -> None:
    """Images of (width, height) that are called as the published preparation calls them."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        pixels = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{30 * number:05d}.jpg", quality=95)


CREMAD_NAMES = {
    split: [
        f"10{10 * number + i:02d}_DFA_{emotion}_XX"
        for i, emotion in enumerate(("ANG", "NEU", "HAP", "SAD", "FEA", "DIS")[:count])
    ]
    for number, (split, count) in enumerate(zip(SPLITS, (6, 3, 2), strict=True))
}


def write_cremad(root: Path, files: bool = True) -> None:
    """Five folds, of which the first has clips; the ratings after the names are none of them."""
    keys = {"train": "train", "validation": "val", "test": "test"}
    fold = {keys[s]: [f"{name}.wav-5" for name in names] for s, names in CREMAD_NAMES.items()}
    folds = {"1": fold, **{str(k): {"train": [], "val": [], "test": []} for k in range(2, 6)}}
    (root / "data_splits_VALV.pkl").write_text(json.dumps(folds))
    if files:
        for number, name in enumerate(name for names in CREMAD_NAMES.values() for name in names):
            write_wav(root / "AudioWAV" / f"{name}.wav", 16000, 0.7 + 0.5 * number, seed=number)
            write_frames(root / "Image-01-FPS" / name, 1 + number % 4, seed=number)


AVE_LINES = {
    "train": ["Church bell&aa_1&good&0&3", "Mandolin&-b&good&1&2", "Bark&ccc&good&0&0"],
    "validation": ["Bark&d&good&0&1"],
    "test": ["Cat&e&e&2&3", "Cat&e&good&0&3"],
}


def write_ave(root: Path, files: bool = True) -> None:
    """The lists with an empty event and a clip that comes twice."""
    names = {"train": "trainSet.txt", "validation": "valSet.txt", "test": "testSet.txt"}
    for split, lines in AVE_LINES.items():
        (root / names[split]).write_text("\n".join(lines) + "\n")
    if files:
        for number, name in enumerate(("aa_1", "-b", "d", "e")):
            write_wav(root / "Audios" / f"{name}.wav", 44100, 3.0, seed=number, channels=2)
            write_frames(root / "Image-01-FPS-SE" / name, 5, seed=number)


STEPS, WIDTHS = 10, {"vision": 20, "text": 300, "audio": 5}


def multibench(rows: int, rng: np.random.Generator, steps: int = STEPS) -> dict[str, np.ndarray]:
    """Of a split; row i has i % 4 steps of zeros at the front. Text says the sentiment."""
    labels = rng.uniform(-3, 3, (rows, 1, 1)).round(1)
    part = {key: rng.normal(0, 1, (rows, steps, width)) for key, width in WIDTHS.items()}
    part["text"][:, :, :3] = labels
    for row in range(rows):
        for key in WIDTHS:
            part[key][row, : row % 4] = 0
    return {**part, "labels": labels, "id": np.array([[b"a", b"0", b"1"]] * rows)}


def mmsa(rows: int, rng: np.random.Generator, aligned: bool) -> dict[str, object]:
    """Of a split; row i has i % 4 steps of zeros at the end, of which the text's are not 0."""
    steps = {"vision": 10 if aligned else 25, "text": 10, "audio": 10 if aligned else 30}
    part = {key: rng.normal(0, 1, (rows, steps[key], width)) for key, width in WIDTHS.items()}
    lengths = {key: [steps[key] - row % 4 for row in range(rows)] for key in WIDTHS}
    for row in range(rows):
        for key in ("vision", "audio"):
            part[key][row, lengths[key][row] :] = 0
    mask = np.arange(10) < np.array(lengths["text"])[:, None]
    part["text_bert"] = np.stack([mask * 7, mask, mask * 0], axis=1).astype(np.float32)
    part["regression_labels"] = rng.uniform(-3, 3, rows)
    extra = {"raw_text": np.array(["so so"] * rows), "id": [f"v$_${row}" for row in range(rows)]}
    if not aligned:
        extra |= {f"{key}_lengths": lengths[key] for key in ("vision", "audio")}
    return {**part, **extra}


def write_pickle(path: Path, parts: dict[str, object]) -> None:
    path.write_bytes(pickle.dumps(parts, protocol=4))


def write_mosi(root: Path, rows: tuple[int, int, int] = (14, 6, 6), seed: int = 0) -> Path:
    """MultiBench's file."""
    rng = np.random.default_rng(seed)
    names = ("train", "valid", "test")
    parts = {name: multibench(n, rng) for name, n in zip(names, rows, strict=True)}
    write_pickle(root / "mosi_data.pkl", parts)
    return root / "mosi_data.pkl"
