"""Where records go: a CSV file, TensorBoard, Weights & Biases, a callable, a dict."""

import csv
import math

import pytest
from monitored import NAMES, Game
from programs import run_python

from mcr_fast import MCRMonitor
from mcr_fast.monitor import CSVLog, TensorBoardLog, WandbLog


def train(log, steps=5, every=2):
    game, monitor = Game(), MCRMonitor(NAMES, every=every, log=log)
    for _ in range(steps):
        game.step(monitor)
    monitor.close()
    return monitor


def test_callables_and_dicts():
    seen, values = [], {}
    monitor = train([lambda step, values: seen.append((step, values["loss"])), values])
    assert [step for step, _ in seen] == [2, 4] == [r["step"] for r in monitor.history]
    assert values["loss"] == seen[-1][1] == monitor.history[-1]["loss"]
    alone = {}
    train(alone)
    assert set(alone) == set(values) == set(monitor.read())


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv(tmp_path):
    path = tmp_path / "new" / "log.csv"
    history = train(CSVLog(path)).history
    rows = rows_of(path)
    assert [row["step"] for row in rows] == ["2", "4"]
    for row, record in zip(rows, history, strict=True):
        assert float(row["importance/audio"]) == pytest.approx(record["importance/audio"], 1e-5)
        assert row["mutual_information_bound"] == ""
    train(CSVLog(path, append=True))
    assert [row["step"] for row in rows_of(path)] == ["2", "4", "2", "4"]
    train(CSVLog(path))
    assert len(rows_of(path)) == 2


def scalars_of(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {tag: events.Scalars(tag) for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("own", [False, True])
def test_tensorboard(tmp_path, own):
    pytest.importorskip("tensorboard")
    writer = str(tmp_path)
    if own:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(writer)
    history = train(TensorBoardLog(writer)).history
    scalars = scalars_of(tmp_path)
    found = scalars["mcr/importance/audio"]
    assert [event.step for event in found] == [2, 4]
    wanted = [record["importance/audio"] for record in history]
    assert [event.value for event in found] == pytest.approx(wanted, rel=1e-5)
    assert "mcr/mutual_information_bound" not in scalars


def test_wandb_offline(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = wandb.init(mode="offline", dir=str(tmp_path), project="mcr", settings={"console": "off"})
    try:
        run.log({"mine": 1.0}, step=1000)  # the run's own step is ahead
        history = train(WandbLog(run)).history
        summary = dict(run.summary)
    finally:
        run.finish()
    assert summary["mcr/step"] == 4
    assert summary["mcr/importance/audio"] == pytest.approx(history[-1]["importance/audio"])
    assert not any(isinstance(x, float) and math.isnan(x) for x in summary.values())
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))


def test_no_framework_is_imported_with_the_package():
    code = "import torch, sys; names = 'lightning pytorch_lightning transformers accelerate '; "
    code += "names = {*(names + 'tensorboard wandb matplotlib').split()}; "
    code += "import mcr_fast.monitor; print(*names & set(sys.modules))"
    assert run_python("-c", code).stdout == "\n"


def test_bench(tmp_path):
    bench = pytest.importorskip("bench.monitor")
    lines = bench.measure(bench.Size(8, 4, 6, 5, 3), 2, tmp_path)
    names = [name for name, *_ in lines]
    assert names[:2] == ["with it", "of which the regularizer"]
    assert "MCRMonitor, with a CSV file" in names
    assert all(float(milliseconds) for _, milliseconds, _ in lines[:1])
