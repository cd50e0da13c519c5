"""Frames as tensors, by Pillow and torch: no torchvision."""

import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SIZE = 224
SUFFIXES = (".jpg", ".jpeg", ".png")
# of ImageNet, for which torchvision's models are made
MEAN = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
DEVIATION = torch.tensor([0.229, 0.224, 0.225])[:, None, None]


def read_image(path: Path) -> Tensor:  # [3, height, width]
    """Red, green, blue in 0..1, float32.

    Raises:
        ValueError: no image that can be read, or one that is cut short; it names the file.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except FileNotFoundError:
        raise
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises each of them
        raise ValueError(f"{path}: no image that can be read ({error})") from error
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255


def resized(image: Tensor, size: int = SIZE) -> Tensor:  # [3, h, w] -> [3, size, size]
    """Bilinear with antialiasing, not keeping the ratio of the sides."""
    return F.interpolate(image[None], (size, size), mode="bilinear", antialias=True)[0]


def random_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Top, left, height and width of a box: 8 to 100 % of the area, sides at 3/4 to 4/3.

    The area is uniform, the ratio uniform in its logarithm. After ten boxes that do not fit it is
    the largest one in the middle whose ratio is allowed.
    """
    least, most = 3 / 4, 4 / 3
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1.0)
        ratio = math.exp(rng.uniform(math.log(least), math.log(most)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    h, w = height, width
    if width / height < least:
        h = round(width / least)
    elif width / height > most:
        w = round(height * most)
    return (height - h) // 2, (width - w) // 2, h, w


def augmented(image: Tensor, rng: np.random.Generator) -> Tensor:  # [3, h, w] -> [3, SIZE, SIZE]
    """A random box of the image, resized, and mirrored half of the time."""
    top, left, height, width = random_box(image.shape[1], image.shape[2], rng)
    image = resized(image[:, top : top + height, left : left + width])
    return image.flip(2) if rng.random() < 0.5 else image


def frames_in(folder: Path) -> list[Path]:
    """A folder's images in the order of their names."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)


def read_frames(
    folder: Path, count: int, rng: np.random.Generator | None
) -> Tensor:  # [count, 3, SIZE, SIZE]
    """The first `count` frames, normalised; with `rng` each has a random box of its own.

    Fewer frames than that are taken again from the first one on.
    """
    paths = frames_in(folder)
    if not paths:
        raise ValueError(f"{folder} has no image ({', '.join(SUFFIXES)})")
    images = []
    for number in range(count):
        image = read_image(paths[number % len(paths)])
        image = resized(image) if rng is None else augmented(image, rng)
        images.append((image - MEAN) / DEVIATION)
    return torch.stack(images)
