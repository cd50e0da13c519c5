"""The loader of CMU-MOSI and CMU-MOSEI, its pickles, and what sentiment is measured by."""

import os
import pickle

import numpy as np
import papers
import pytest
import torch
from paper import features, metrics, mosi
from sklearn.metrics import f1_score

RNG_SPLITS = ("train", "valid", "test")


@pytest.fixture
def parts():
    rng = np.random.default_rng(0)
    return {name: papers.multibench(6, rng) for name in RNG_SPLITS}


def test_multibench_is_cut_where_the_text_starts(tmp_path, parts):
    path = papers.write_mosi(tmp_path)
    data = mosi.Sentiment(path, "train")
    assert (len(data), data.widths, data.aligned, data.dropped) == (14, (20, 300, 5), True, 0)
    whole = pickle.loads(path.read_bytes())["train"]
    for row in (0, 3, 5):
        found, label = data[row]
        for x, key in zip(found, ("vision", "text", "audio"), strict=True):
            wanted = torch.from_numpy(whole[key][row, row % 4 :]).float()
            assert torch.equal(x, wanted)
        assert label.dtype == torch.float32
        assert label == pytest.approx(whole["labels"][row, 0, 0])


def test_a_folder_has_the_names_of_its_set(tmp_path, parts):
    papers.write_pickle(tmp_path / "mosei_senti_data.pkl", parts)
    assert mosi.Sentiment(tmp_path, "test", data="mosei").source.name == "mosei_senti_data.pkl"
    with pytest.raises(FileNotFoundError) as error:
        mosi.Sentiment(tmp_path, "test", data="mosi")
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 'mosi_data.pkl'} is missing.\n")
    assert "aligned_50.pkl or unaligned_50.pkl" in message
    papers.write_pickle(tmp_path / "aligned_50.pkl", parts)
    assert mosi.Sentiment(tmp_path, "test", data="mosi").source.name == "aligned_50.pkl"


def test_rows_without_text_are_left_out_and_infinities_are_0(tmp_path, parts):
    parts["train"]["text"][2] = 0
    parts["train"]["audio"][0, 4, 1] = -np.inf
    papers.write_pickle(tmp_path / "mosi_data.pkl", parts)
    data = mosi.Sentiment(tmp_path, "train")
    assert (len(data), data.dropped) == (5, 1)
    (_, _, sound), _ = data[0]
    assert sound[4, 1] == 0
    assert sound.isfinite().all()
    _, third = data[2]
    assert third == pytest.approx(parts["train"]["labels"][3, 0, 0])


def test_files_that_are_not_aligned_are_cut_one_by_one(tmp_path, parts):
    for part in parts.values():
        part["vision"] = np.concatenate([np.zeros((6, 7, 20)), part["vision"]], axis=1)
        part["audio"][4] = 0  # silence: one step is left
    papers.write_pickle(tmp_path / "mosi_data.pkl", parts)
    data = mosi.Sentiment(tmp_path, "validation")
    assert not data.aligned
    assert [len(x) for x in data[1][0]] == [9, 9, 9]
    assert [len(x) for x in data[4][0]] == [10, 10, 1]


@pytest.mark.parametrize("aligned", [True, False])
def test_mmsas_files_are_read_by_their_lengths(aligned, tmp_path):
    rng = np.random.default_rng(0)
    name = "aligned_50.pkl" if aligned else "unaligned_50.pkl"
    parts = {split: papers.mmsa(6, rng, aligned) for split in RNG_SPLITS}
    papers.write_pickle(tmp_path / name, parts)
    data = mosi.Sentiment(tmp_path, "test", modalities=("text", "audio", "video"))
    assert data.aligned == aligned
    assert data.widths == (300, 5, 20)
    for row in range(6):
        found, label = data[row]
        lengths = (10, 10, 10) if aligned else (10, 30, 25)
        assert [len(x) for x in found] == [length - row % 4 for length in lengths]
        assert label == pytest.approx(parts["test"]["regression_labels"][row])
        wanted = parts["test"]["vision"][row, : len(found[2])]
        np.testing.assert_allclose(found[2].numpy(), wanted, rtol=1e-6)


def test_a_batch_is_filled_up_at_the_end(tmp_path):
    data = mosi.Sentiment(papers.write_mosi(tmp_path), "train", modalities=("text", "video"))
    (text, video), labels = mosi.collate([data[1], data[3]])
    assert (text.shape, video.shape, labels.shape) == ((2, 9, 300), (2, 9, 20), (2,))
    assert torch.equal(video[1, :7], data[3][0][1])
    assert (video[1, 7:] == 0).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda parts: parts.pop("valid"), "no dict with 'valid', which is one of"),
        (lambda parts: parts["valid"].pop("audio"), "'valid' has no 'audio'"),
        (lambda parts: parts["valid"].pop("labels"), "no 'labels' or 'regression_labels'"),
        (
            lambda parts: parts["valid"].update(text=np.zeros((6, 300))),
            r"'text' of 'valid' must be \[n, steps, features\], got \(6, 300\)",
        ),
        (
            lambda parts: parts["valid"].update(labels=np.zeros(5)),
            r"as many rows everywhere, got \[5, 6\]",
        ),
        (
            lambda parts: parts["valid"].update(labels=np.full(6, np.nan)),
            "labels that are not finite",
        ),
    ],
)
def test_what_a_file_lacks_is_said(change, message, tmp_path, parts):
    change(parts)
    papers.write_pickle(tmp_path / "mosi_data.pkl", parts)
    with pytest.raises(ValueError, match=message) as error:
        mosi.Sentiment(tmp_path, "validation")
    assert str(error.value).startswith(str(tmp_path / "mosi_data.pkl"))


def test_modalities_are_known(tmp_path):
    with pytest.raises(ValueError, match="modalities must be of"):
        mosi.Sentiment(tmp_path, "train", modalities=("vision",))


class Harmful:
    """A pickle of it calls a function."""

    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", "cut", Harmful()])
def test_a_bad_pickle_is_named_and_runs_nothing(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mosi_data.pkl"
    if isinstance(content, Harmful):
        content = pickle.dumps({"train": content})
    path.write_bytes(pickle.dumps(np.arange(99))[:200] if content == "cut" else content)
    with pytest.raises(ValueError, match="no pickle of arrays") as error:
        features.read_pickle(path)
    assert str(error.value).startswith(str(path))
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("protocol", range(2, 6))
def test_arrays_of_every_protocol_are_read(protocol, tmp_path):
    """Text, bytes, objects and numbers too; the modules' names are those of NumPy 1 and 2."""
    content = {
        "x": np.arange(6.0).reshape(2, 3),
        "id": np.array([b"a", b"bc"]),
        "raw": np.array(["so", "so"]),
        "objects": np.array([[1, "two"]], dtype=object),
        "number": np.float64(3.5),
        "list": [1, "x", None],
    }
    raw = pickle.dumps(content, protocol=protocol)
    for text in (raw, raw.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")):
        if text != raw and protocol >= 4:
            continue  # the length of a name stands in front of it
        (tmp_path / "x.pkl").write_bytes(text)
        found = features.read_pickle(tmp_path / "x.pkl")
        assert found.keys() == content.keys()
        np.testing.assert_array_equal(found["x"], content["x"])
        assert found["raw"].tolist() == ["so", "so"]
        assert found["objects"].tolist() == [[1, "two"]]


def test_accuracy():
    logits = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 1.0], [0.0, 5.0]])
    assert metrics.of_classes(logits, torch.tensor([1, 0, 0, 1])) == {"accuracy": 0.75}


def test_figures_of_sentiment():
    """By hand: rows of label 0 are in the figures with `has0` alone."""
    labels = torch.tensor([-2.0, -0.4, 0.0, 0.0, 1.0, 3.0])
    predicted = torch.tensor([[-1.0], [0.2], [-0.1], [0.3], [0.0], [5.0]])
    found = metrics.of_sentiment(predicted, labels)
    assert found["mae"] == pytest.approx((1 + 0.6 + 0.1 + 0.3 + 1 + 2) / 6)
    assert found["corr"] == pytest.approx(np.corrcoef(predicted[:, 0], labels)[0, 1])
    assert found["acc2"] == pytest.approx(2 / 4)  # wrong: -.4 and 1, for which 0 is predicted
    assert found["acc2_has0"] == pytest.approx(3 / 6)
    # 4 rows without 0: each class has precision 1/2, recall 1/2
    assert found["f1"] == pytest.approx(0.5)
    weighted = f1_score([0, 0, 0, 0, 1, 1], [0, 1, 0, 1, 0, 1], average="weighted")
    assert found["f1_has0"] == pytest.approx(weighted)
    # rounded to even: -.4 -> 0, .2 -> 0, 5 -> 3 (2)
    assert found["acc7"] == pytest.approx(4 / 6)
    assert found["acc5"] == pytest.approx(4 / 6)


def test_a_constant_prediction_has_no_correlation():
    found = metrics.of_sentiment(torch.ones(3, 1), torch.tensor([1.0, 0.0, 0.0]))
    assert np.isnan(found["corr"])
    assert found["acc2"] == 1
    assert np.isnan(metrics.of_sentiment(torch.ones(2, 1), torch.zeros(2))["acc2"])
