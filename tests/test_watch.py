"""The watch over importance: when it warns, that it warns once, and that it never waits."""

import contextlib
import copy
import pickle
import warnings

import pytest
import torch
from torch._subclasses import FakeTensorMode

from mcr_fast._checks.later import LateValues
from mcr_fast._watch import EVERY, LEAST, PATIENCE, ImportanceWatch

LOW = torch.tensor([0.985, 0.015])
FAIR = torch.tensor([0.97, 0.03])
# The values of a look are read at the next one.
ENOUGH = EVERY * (PATIENCE + 1)


def warned(watch, importance, forwards):
    """The texts of the warnings of so many forwards."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(forwards):
            watch.see(importance)
    assert all(w.category is UserWarning for w in caught)
    return [str(w.message) for w in caught]


def test_warns_once_and_says_what_to_do():
    watch = ImportanceWatch(2)
    assert warned(watch, LOW, ENOUGH - 1) == []
    (text,) = warned(watch, LOW, 1)
    for part in (
        "modality 1",
        f"{PATIENCE} looks",
        "under 2%",
        "unimodal losses",
        "three times contrastive_weight",
        "docs/training",
    ):
        assert part in text
    assert warned(watch, LOW, 2 * ENOUGH) == []


@pytest.mark.parametrize(
    "importance",
    [FAIR, torch.tensor([1 - LEAST, LEAST + 1e-6]), torch.tensor([float("nan")] * 2)],
    ids=["fair", "just enough", "nan"],
)
def test_is_silent_when_nothing_stays_low(importance):
    assert warned(ImportanceWatch(2), importance, 2 * ENOUGH) == []


def test_one_fair_look_starts_the_count_anew():
    watch = ImportanceWatch(2)
    assert warned(watch, LOW, ENOUGH - 2 * EVERY) == []
    assert warned(watch, FAIR, EVERY) == []
    assert warned(watch, LOW, ENOUGH - 1) == []
    assert len(warned(watch, LOW, 1)) == 1


def test_each_modality_is_counted_by_itself():
    watch = ImportanceWatch(3)
    for _ in range(2 * PATIENCE):  # every other look finds another one low
        assert warned(watch, torch.tensor([0.01, 0.5, 0.49]), EVERY) == []
        assert warned(watch, torch.tensor([0.5, 0.01, 0.49]), EVERY) == []
    (text,) = warned(watch, torch.tensor([0.5, 0.5, 0.0], dtype=torch.float64), ENOUGH)
    assert "modality 2 (of 0..2" in text


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_go_on_counting(duplicate):
    watch = ImportanceWatch(2)
    warned(watch, LOW, ENOUGH - EVERY)
    again = duplicate(watch)
    # What the last look asked for stays behind, so the copy needs one more.
    assert len(warned(again, LOW, 2 * EVERY)) == 1
    assert not watch.warned


def test_only_every_16th_forward_is_read(monkeypatch):
    reads = []
    monkeypatch.setattr(LateValues, "ask", lambda self, x: reads.append(x))
    warned(ImportanceWatch(2), LOW, 10 * EVERY)
    assert len(reads) == 10


def test_tensors_without_values_are_left_alone():
    watch = ImportanceWatch(2)
    with FakeTensorMode():
        assert warned(watch, torch.ones(2), ENOUGH) == []
    assert warned(watch, torch.zeros(2, device="meta"), ENOUGH) == []
    torch.func.vmap(lambda x: (warned(watch, x, ENOUGH), x)[1])(torch.zeros(3, 2))
    torch.func.grad(lambda x: (warned(watch, x.detach(), ENOUGH), x.sum())[1])(torch.zeros(2))
    assert not watch.warned
    assert watch._low == [0, 0]


class OnCuda:
    """Stands for a tensor on a GPU: what `LateValues` asks of one."""

    device = torch.device("cuda:0")
    shape = LOW.shape
    dtype = LOW.dtype


class Pinned:
    """Stands for pinned memory. Its values may not be read before the event."""

    shape, dtype = LOW.shape, LOW.dtype

    def __init__(self, log):
        self.log = log

    def copy_(self, x, non_blocking):
        assert non_blocking
        self.log.append("copy")

    def tolist(self):
        self.log.append("read")
        return LOW.tolist()


def test_values_of_a_gpu_are_read_after_their_event(monkeypatch):
    log, arrived = [], []

    class Event:
        def record(self):
            log.append("record")

        def query(self):
            return bool(arrived)

    monkeypatch.setattr(torch, "empty", lambda *_, **options: Pinned(log))
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())
    late = LateValues()
    assert late.take() is None
    assert not late.pending
    late.ask(OnCuda())
    assert late.take() is None
    assert late.pending, "still on its way"
    arrived.append(True)
    assert late.take() == LOW.tolist()
    assert log == ["copy", "record", "read"]
    assert late.take() is None
    assert not late.pending
    late.ask(OnCuda())
    pickle.loads(pickle.dumps(late))  # although neither the event nor the memory can be
