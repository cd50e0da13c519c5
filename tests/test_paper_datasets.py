"""The loaders of CREMA-D and AVE: what comes out of tiny files, and each error."""

import json
import warnings

import numpy as np
import papers
import pytest
import torch
from paper import audio, ave, cremad, images
from PIL import Image
from scipy import signal
from scipy.io import wavfile

NAMES = papers.CREMAD_NAMES


@pytest.fixture(scope="module")
def crema(tmp_path_factory):
    root = tmp_path_factory.mktemp("cremad")
    papers.write_cremad(root)
    return root


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    root = tmp_path_factory.mktemp("ave")
    papers.write_ave(root)
    return root


def samples_of(path):
    """What is in a file of 16 bits, in -1..1."""
    return wavfile.read(path)[1].astype(np.float64) / 32768


def test_cremad_has_its_splits_and_labels(crema):
    for split, names in NAMES.items():
        data = cremad.CremaD(crema, split)
        assert [clip.name for clip in data.clips] == names
        # from the names: the numbers behind them in the file are ratings
        assert [clip.label for clip in data.clips] == [5, 0, 1, 2, 3, 4][: len(names)]
        assert data.source == crema / "data_splits_VALV.pkl"


def test_cremad_gives_a_spectrogram_and_frames(crema):
    (spectrogram, frames), label = cremad.CremaD(crema, "validation")[1]
    assert label == 0
    assert spectrogram.shape == (1, 257, 188)
    assert frames.shape == (3, 3, 224, 224)
    assert spectrogram.dtype == frames.dtype == torch.float32


def test_cremads_spectrogram_is_that_of_scipy(crema):
    """scipy's own STFT of the same samples, resampled and repeated by hand."""
    data = cremad.CremaD(crema, "train", modalities=("audio",))
    clip = data.clips[0]  # of 0.7 s
    short = signal.resample_poly(samples_of(clip.wav), 441, 320)
    long = np.tile(short, 5)[: 3 * 22050].clip(-1, 1)
    window = signal.get_window("hann", 512)
    stft = signal.ShortTimeFFT(window, hop=353, fs=1, fft_mode="onesided", scale_to=None)
    spectrum = stft.stft(long, p0=0, p1=188)
    found = data[0][0][0][0].exp().numpy() - 1e-7
    # magnitudes, up to 10 here: above 8 kHz there is nothing, whose logarithm is all rounding
    np.testing.assert_allclose(found, np.abs(spectrum), atol=2e-5, rtol=1e-5)


def test_aves_spectrogram_is_of_the_event(events):
    """Frames without their mean under a Tukey window, their power by a transform of its own."""
    data = ave.Ave(events, "train", modalities=("audio",))
    assert [clip.name for clip in data.clips] == ["aa_1", "-b"]
    clip = data.clips[1]  # second 1 to 2
    samples = samples_of(clip.wav).mean(1)
    event = signal.resample_poly(samples, 160, 441)[16000:32000]
    long = torch.from_numpy(np.tile(event, 10))
    window = torch.from_numpy(signal.get_window(("tukey", 0.25), 512))
    frames = long.unfold(0, 512, 159)
    frames = (frames - frames.mean(1, keepdim=True)) * window
    power = torch.fft.rfft(frames).abs().square() / (16000 * window.square().sum())
    power[:, 1:-1] *= 2
    found = data[1][0][0]
    assert found.shape == (1, 257, 1004)
    # compared before the logarithm, whose 1e-7 is not far from the power of such noise
    difference = found[0].exp().double() - 1e-7 - power.T
    assert difference.abs().max() < 1e-3 * power.max()


def test_ave_leaves_out_empty_events_and_second_lines(events):
    assert [c.name for c in ave.Ave(events, "validation").clips] == ["d"]
    (clip,) = ave.Ave(events, "test").clips
    assert (clip.name, clip.start, clip.end) == ("e", 2, 3)
    assert clip.label == ave.CLASSES.index("Cat")
    assert len(set(ave.CLASSES)) == 28


def test_ave_gives_four_frames(events):
    (spectrogram, frames), label = ave.Ave(events, "test")[0]
    assert frames.shape == (4, 3, 224, 224)
    assert label == 22
    assert spectrogram.isfinite().all()


def test_a_header_of_aves_list_is_none_of_its_lines(events, tmp_path):
    papers.write_ave(tmp_path, files=False)
    text = "Category&VideoID&Quality&StartTime&EndTime\nBark&d&good&0&1\n"
    (tmp_path / "valSet.txt").write_text(text)
    for name in ("Audios", "Image-01-FPS-SE"):
        (tmp_path / name).symlink_to(events / name)
    assert [c.name for c in ave.Ave(tmp_path, "validation").clips] == ["d"]


def test_modalities_are_read_in_the_order_asked_for(crema, tmp_path):
    both = cremad.CremaD(crema, "validation")[0][0]
    swapped = cremad.CremaD(crema, "validation", modalities=("video", "audio"))[0][0]
    assert torch.equal(both[0], swapped[1])
    assert torch.equal(both[1], swapped[0])
    # what is not asked for need not be there
    papers.write_cremad(tmp_path, files=False)
    (tmp_path / "AudioWAV").symlink_to(crema / "AudioWAV")
    (spectrogram,), _ = cremad.CremaD(tmp_path, "validation", modalities=("audio",))[0]
    assert torch.equal(spectrogram, both[0])
    with pytest.raises(ValueError, match="modalities must be of"):
        cremad.CremaD(crema, "train", modalities=("text",))


def test_only_training_frames_are_augmented_and_repeatably(crema):
    data = cremad.CremaD(crema, "train", modalities=("video",))
    again = cremad.CremaD(crema, "train", modalities=("video",))
    other_seed = cremad.CremaD(crema, "train", modalities=("video",), seed=1)
    data.num_frames = again.num_frames = other_seed.num_frames = 2  # which is quicker
    frames = data[0][0][0]
    assert torch.equal(frames, again[0][0][0])
    assert not torch.equal(frames, other_seed[0][0][0])
    assert not torch.equal(frames[0], frames[1])  # the same image, another box
    again.set_epoch(1)
    assert not torch.equal(frames, again[0][0][0])
    still = cremad.CremaD(crema, "test", modalities=("video",))
    before = still[0][0][0]
    still.set_epoch(1)
    assert torch.equal(before, still[0][0][0])


def test_fewer_frames_are_taken_again(crema):
    data = cremad.CremaD(crema, "validation", modalities=("video",))
    counts = [len(images.frames_in(clip.frames)) for clip in data.clips]
    assert counts[0] == 3
    assert counts[2] == 1
    frames = data[2][0][0]
    assert torch.equal(frames[0], frames[1])
    assert torch.equal(frames[0], frames[2])


def test_a_frame_is_resized_and_normalised(tmp_path):
    papers.write_frames(tmp_path, 1, size=(40, 30))
    path = tmp_path / "00000.jpg"
    with Image.open(path) as image:
        wanted = np.asarray(image.resize((224, 224), Image.Resampling.BILINEAR)) / 255
        small = np.asarray(image.resize((20, 20), Image.Resampling.BILINEAR)) / 255
    found = images.read_frames(tmp_path, 1, None)[0] * images.DEVIATION + images.MEAN
    assert np.abs(found.permute(1, 2, 0).numpy() - wanted).max() < 0.01  # Pillow's are of 8 bits
    smaller = images.resized(images.read_image(path), 20)
    assert np.abs(smaller.permute(1, 2, 0).numpy() - small).max() < 0.01


def test_boxes_are_within_the_image_and_of_the_range():
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(2000):
        top, left, height, width = images.random_box(30, 40, rng)
        assert 0 <= top <= 30 - height
        assert 0 <= left <= 40 - width
        # of whole pixels, hence the room
        assert 0.65 < width / height < 1.55
        shares.append(height * width / 1200)
    assert 0.06 < min(shares) < 0.12
    assert max(shares) > 0.9
    assert 0.4 < np.mean(shares) < 0.6
    assert images.random_box(3, 300, rng) == (0, 148, 3, 4)  # no box fits: the middle


def test_half_of_the_boxes_are_mirrored(monkeypatch):
    resized = images.resized
    monkeypatch.setattr(images, "resized", lambda image: resized(image, 16))
    rng = np.random.default_rng(0)
    image = torch.linspace(0, 1, 40).expand(3, 30, 40)  # from left to right
    rises = [bool(images.augmented(image, rng)[0, 0].diff().sum() > 0) for _ in range(60)]
    assert 20 <= sum(rises) <= 40


def test_lists_are_a_split_too(crema, tmp_path):
    """Those of OGM-GE: the last tenth of train.csv is for validation."""
    for name in ("AudioWAV", "Image-01-FPS"):
        (tmp_path / name).symlink_to(crema / name)
    rows = [f"{name},{name.split('_')[2]}" for name in NAMES["train"]]
    (tmp_path / "train.csv").write_text("\ufeff" + "\n".join(rows) + "\n", encoding="utf-8")
    (tmp_path / "test.csv").write_text("\n".join(f"{name},X" for name in NAMES["test"]))
    sizes = [len(cremad.CremaD(tmp_path, split)) for split in papers.SPLITS]
    assert sizes == [5, 1, 2]
    assert cremad.CremaD(tmp_path, "train").clips[0].name == NAMES["train"][0]
    with pytest.raises(ValueError, match="fold must be 0"):
        cremad.CremaD(tmp_path, "train", fold=1)


@pytest.mark.parametrize("load", [cremad.CremaD, ave.Ave])
def test_an_empty_folder_is_told_what_it_should_hold(load, tmp_path):
    with pytest.raises(FileNotFoundError) as error:
        load(tmp_path, "train")
    message = str(error.value)
    first = "data_splits_VALV.pkl" if load is cremad.CremaD else "trainSet.txt"
    assert message.startswith(f"{tmp_path / first} is missing.\nExpected in {tmp_path}:\n")
    assert "<number>.jpg" in message
    assert message.endswith("docs/paper-datasets.md")


def test_a_list_without_the_other_is_told_so(tmp_path):
    (tmp_path / "train.csv").write_text("a,b")
    with pytest.raises(FileNotFoundError, match="test.csv is missing"):
        cremad.CremaD(tmp_path, "train")


def test_missing_clips_are_counted(crema, tmp_path):
    papers.write_cremad(tmp_path, files=False)
    (tmp_path / "AudioWAV").symlink_to(crema / "AudioWAV")
    gone, *there = NAMES["train"]
    for name in there:
        papers.write_frames(tmp_path / "Image-01-FPS" / name, 1)
    with pytest.raises(FileNotFoundError) as error:
        cremad.CremaD(tmp_path, "train")
    lines = str(error.value).splitlines()
    assert lines[0] == f"{tmp_path / 'Image-01-FPS' / gone} is missing."
    assert lines[1] == "1 of 6 folders of frames are missing."
    data = cremad.CremaD(tmp_path, "train", allow_missing=True)
    assert [clip.name for clip in data.clips] == there
    # all of them missing is no set of data
    with pytest.raises(FileNotFoundError, match="3 of 3 folders of frames"):
        cremad.CremaD(tmp_path, "validation", allow_missing=True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no WAV file"),
        (b"RIFF", "no WAV file"),
        (b"\0" * 100, "no WAV file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "pointer of Git LFS"),
        ("cut", "no WAV file"),
        ("no samples", "has no samples"),
    ],
)
def test_a_bad_wav_is_named(content, message, tmp_path):
    path = tmp_path / "x.wav"
    papers.write_wav(path, 16000, 0.0 if content == "no samples" else 1.0)
    if content == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    elif isinstance(content, bytes):
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        audio.read_wav(path, 16000)
    assert str(error.value).startswith(str(path))


def chunk(name, content=b"\0" * 10):
    return name + len(content).to_bytes(4, "little") + content


@pytest.mark.parametrize("name", [b"bext", b"id3 ", b"PEAK", b"cue ", b"LIST"])
@pytest.mark.parametrize("first", [True, False])
def test_chunks_without_samples_are_passed_over(name, first, tmp_path):
    """Recorders and editors write them before the samples and after them."""
    path = tmp_path / "x.wav"
    papers.write_wav(path, 16000, 0.1)
    wanted = audio.read_wav(path, 16000)
    content = path.read_bytes()[12:]
    both = chunk(name) + content if first else content + chunk(name)
    path.write_bytes(b"RIFF" + (len(both) + 4).to_bytes(4, "little") + b"WAVE" + both)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(audio.read_wav(path, 16000), wanted)
    path.write_bytes(path.read_bytes()[:1000])  # and one that is cut short is still none
    with pytest.raises(ValueError, match="Reached EOF prematurely"):
        audio.read_wav(path, 16000)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int32, np.float32])
def test_wavs_of_every_depth_are_in_the_same_range(dtype, tmp_path):
    wave = np.sin(np.linspace(0, 30, 400)) * 0.5
    scale, shift = {np.uint8: (128, 128), np.int16: (2**15, 0), np.int32: (2**31, 0)}.get(
        dtype, (1, 0)
    )
    wavfile.write(tmp_path / "x.wav", 8000, (wave * scale + shift).astype(dtype))
    found = audio.read_wav(tmp_path / "x.wav", 8000)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), wave, atol=1 / 100)


def test_samples_are_repeated_cut_and_clipped():
    assert audio.tiled(torch.tensor([0.5, 2.0, -3.0]), 7).tolist() == [0.5, 1, -1, 0.5, 1, -1, 0.5]
    assert audio.tiled(torch.arange(5) / 10, 2).tolist() == pytest.approx([0, 0.1])


@pytest.mark.parametrize("content", [b"", b"JFIF", "cut"])
def test_a_bad_image_is_named(content, tmp_path):
    papers.write_frames(tmp_path, 1)
    path = tmp_path / "00000.jpg"
    path.write_bytes(path.read_bytes()[:400] if content == "cut" else content)
    with pytest.raises(ValueError, match="no image that can be read") as error:
        images.read_frames(tmp_path, 1, None)
    assert str(error.value).startswith(str(path))


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(ValueError, match="has no image"):
        images.read_frames(tmp_path, 1, None)


def test_an_event_after_the_audios_end_is_named(events, tmp_path):
    papers.write_ave(tmp_path, files=False)
    (tmp_path / "valSet.txt").write_text("Bark&d&good&5&6\n")
    papers.write_wav(tmp_path / "Audios/d.wav", 16000, 3.0)
    data = ave.Ave(tmp_path, "validation", modalities=("audio",))
    with pytest.raises(ValueError, match=r"d\.wav has 3\.00 s, and its event starts at 5 s"):
        data[0]


@pytest.mark.parametrize(
    "line", ["Bark&d&good&0", "Barks&d&good&0&1", "Bark&d&good&zero&1", "no list at all"]
)
def test_a_bad_line_of_aves_list_is_named(line, tmp_path):
    """With its number in the file, of which empty lines and a header are some."""
    before = "\nCategory&VideoID&Quality&StartTime&EndTime\n\nBark&d&good&0&1\n \n"
    (tmp_path / "trainSet.txt").write_text(f"{before}{line}\n")
    with pytest.raises(ValueError, match=r"trainSet\.txt, line 6: .* is not <category>"):
        ave.Ave(tmp_path, "train")


@pytest.mark.parametrize("content", ["", "{", "[]", '{"1": {"val": []}}', '{"1": []}'])
def test_bad_folds_are_named(content, tmp_path):
    (tmp_path / "data_splits_VALV.pkl").write_text(content)
    with pytest.raises(ValueError, match=r"data_splits_VALV\.pkl: no JSON with 'train' of fold"):
        cremad.CremaD(tmp_path, "train")


def test_a_fold_that_is_none_is_an_error(crema):
    with pytest.raises(ValueError, match="fold must be 0 to 4, got 5"):
        cremad.CremaD(crema, "train", fold=5)


def test_a_split_without_clips_is_an_error(crema):
    with pytest.raises(ValueError, match=r"data_splits_VALV\.pkl has no clip for this split"):
        cremad.CremaD(crema, "train", fold=1)


def test_a_name_that_is_none_is_an_error(tmp_path):
    folds = {"1": {"train": ["1001_DFA_JOY_XX.wav-1"]}}
    (tmp_path / "data_splits_VALV.pkl").write_text(json.dumps(folds))
    with pytest.raises(ValueError, match="'1001_DFA_JOY_XX' is no clip's name"):
        cremad.CremaD(tmp_path, "train")


def test_an_empty_list_is_named(tmp_path):
    (tmp_path / "trainSet.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"trainSet\.txt is empty"):
        ave.Ave(tmp_path, "train")
