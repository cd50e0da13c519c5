"""WAV files and log spectrograms, by scipy and torch: no librosa, no torchaudio."""

import math
import warnings
from pathlib import Path

import numpy as np
import torch
from scipy import signal
from scipy.io import wavfile
from torch import Tensor

WINDOW = 512  # samples, of both sets
FLOOR = 1e-7  # added before the logarithm, so that silence is finite
# CREMA-D's repository holds its audio this way, and downloads have the pointers
POINTER = b"version https://git-lfs"
POINTER_HINT = "it is a pointer of Git LFS: `git lfs pull` fetches the file"


def read_wav(path: Path, rate: int) -> Tensor:  # [samples]
    """A file's samples at `rate` in Hz, float32 in -1..1, channels averaged.

    Other rates are resampled by `scipy.signal.resample_poly`; librosa, which the published code
    calls, has another filter at the band's end.

    Raises:
        ValueError: no WAV file, one that is cut short, or one without samples; it names the file.
    """
    try:
        with warnings.catch_warnings():
            # What scipy warns of are chunks that it skips, such as bext, id3 and cue, which hold
            # no samples; but a file that ends before its header says has lost some.
            warnings.simplefilter("ignore", wavfile.WavFileWarning)
            warnings.filterwarnings("error", "Reached EOF prematurely", wavfile.WavFileWarning)
            found, samples = wavfile.read(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # scipy raises what its parser happens to stumble upon
        why = POINTER_HINT if path.read_bytes()[: len(POINTER)] == POINTER else str(error)
        raise ValueError(f"{path}: no WAV file that can be read ({why})") from error
    if samples.size == 0:
        raise ValueError(f"{path} has no samples")
    if samples.dtype == np.uint8:
        samples = (samples.astype(np.float32) - 128) / 128
    elif np.issubdtype(samples.dtype, np.integer):
        samples = samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
    samples = samples.astype(np.float32)
    if not np.isfinite(samples).all():
        raise ValueError(f"{path} has samples that are not finite")
    if samples.ndim == 2:
        samples = samples.mean(1)
    if found != rate:
        common = math.gcd(found, rate)
        samples = signal.resample_poly(samples, rate // common, found // common)
    return torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))


def tiled(samples: Tensor, length: int) -> Tensor:  # [samples] -> [length]
    """The samples again and again until there are enough, cut there, and held in -1..1."""
    times = -(-length // len(samples))
    return samples.repeat(times)[:length].clamp(-1, 1)


def log_magnitude(samples: Tensor, hop: int = 353) -> Tensor:  # [n] -> [257, 1 + n // hop]
    """log(|STFT| + 1e-7): periodic Hann window of 512, frames centred, zeros around the ends.

    As ``librosa.stft(n_fft=512, hop_length=353)`` gives it, from version 0.10 on; older ones
    reflect at the ends, which changes the first and last frame.
    """
    window = torch.hann_window(WINDOW, dtype=samples.dtype)
    spectrum = torch.stft(
        samples, WINDOW, hop, window=window, center=True, pad_mode="constant", return_complex=True
    )
    return torch.log(spectrum.abs() + FLOOR)


def log_power(samples: Tensor, rate: int, hop: int = 159) -> Tensor:  # [n] -> [257, frames]
    """log(power density + 1e-7) by `scipy.signal.spectrogram` with its defaults.

    That is a Tukey window of 512 and the mean taken out of each frame; frames do not pass the ends.
    """
    _, _, power = signal.spectrogram(samples.numpy(), rate, nperseg=WINDOW, noverlap=WINDOW - hop)
    return torch.log(torch.from_numpy(power).abs() + FLOOR)
