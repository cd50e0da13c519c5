"""AVE: events that are seen and heard, 28 classes.

Folder:

    trainSet.txt, valSet.txt, testSet.txt   as in the data set's archive
    Audios/<id>.wav                         the whole clip's audio
    Image-01-FPS-SE/<id>/<number>.jpg       frames, one for each second of the event

A line of the lists is <category>&<id>&<quality>&<start>&<end>, the event's start and end in whole
seconds. Lines whose event is empty are left out, and a clip's later lines.

As in the code of arXiv 2411.07335 (kkontras/MCR, datasets/AVE): 16 kHz, the event's audio
repeated to 10 s, scipy's spectrogram of 512 samples with 353 of them overlapping, 4 frames of
224 x 224 from the start of the event.
"""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from paper.audio import log_power, read_wav, tiled
from paper.clips import MODALITIES, Clip, Clips, Split, those_there
from paper.files import lines_of, require

# in the order of the published code
CLASSES = (
    *("Church bell", "Male speech, man speaking", "Bark", "Fixed-wing aircraft, airplane"),
    *("Race car, auto racing", "Female speech, woman speaking", "Helicopter", "Violin, fiddle"),
    *("Flute", "Ukulele", "Frying (food)", "Truck", "Shofar", "Motorcycle", "Acoustic guitar"),
    *("Train horn", "Clock", "Banjo", "Goat", "Baby cry, infant cry", "Bus", "Chainsaw", "Cat"),
    *("Horse", "Toilet flush", "Rodents, rats, mice", "Accordion", "Mandolin"),
)
RATE, SECONDS, NUM_FRAMES = 16000, 10, 4
LISTS = {"train": "trainSet.txt", "validation": "valSet.txt", "test": "testSet.txt"}
LAYOUT = """
trainSet.txt, valSet.txt, testSet.txt   lines of <category>&<id>&<quality>&<start>&<end>
Audios/<id>.wav                         the whole clip's audio
Image-01-FPS-SE/<id>/<number>.jpg       frames, one for each second of the event
"""


class Ave(Clips):
    """One split.

    Args:
        root: the folder that the module describes.
        split: "train", "validation" or "test".
        modalities: which of "audio" and "video", in which order.
        allow_missing: leave out clips without their files, unless all are without.
        seed: of the augmentation.

    Raises:
        FileNotFoundError: what is missing, how many, and what is expected where.
        ValueError: a file that is not what it should be, by its name.
    """

    def __init__(
        self,
        root: Path | str,
        split: Split,
        *,
        modalities: Sequence[str] = MODALITIES,
        allow_missing: bool = False,
        seed: int = 0,
    ) -> None:
        root = Path(root)
        self.source = root / LISTS[split]
        require(root, LAYOUT, [self.source])
        clips = _clips(root, self.source)
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


def spectrogram(clip: Clip) -> Tensor:  # [257, 1004]
    """Of the event, repeated to ten seconds."""
    samples = read_wav(clip.wav, RATE)
    event = samples[RATE * clip.start : None if clip.end is None else RATE * clip.end]
    if len(event) == 0:
        seconds = len(samples) / RATE
        raise ValueError(f"{clip.wav} has {seconds:.2f} s, and its event starts at {clip.start} s")
    return log_power(tiled(event, RATE * SECONDS), RATE)


def _clips(root: Path, source: Path) -> list[Clip]:
    clips: dict[str, Clip] = {}
    for place, (number, line) in enumerate(lines_of(source)):
        fields = line.split("&")
        if place == 0 and fields[0] == "Category":
            continue  # a header, which Annotations.txt has
        try:
            category, name, _, start, end = fields
            label, times = CLASSES.index(category), (int(start), int(end))
        except ValueError as error:
            raise ValueError(
                f"{source}, line {number}: {line!r} is not "
                "<category>&<id>&<quality>&<start>&<end> with one of the 28 categories"
            ) from error
        wav, frames = root / "Audios" / f"{name}.wav", root / "Image-01-FPS-SE" / name
        if times[1] > times[0] and name not in clips:
            clips[name] = Clip(name, label, wav, frames, *times)
    return list(clips.values())
