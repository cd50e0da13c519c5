"""ResNet-18, the published schedule, and train.py: both stages, stopped anywhere and gone on."""

import dataclasses
import json
import re
import signal
import subprocess
import sys
import time

import papers
import pytest
import torch
from paper import engine, models, resnet, runs, schedule, train
from paper_tiny import command, shrink, trained
from programs import ROOT, run_python
from torch import nn

TORCHVISION = {  # parameters and buffers of torchvision.models.resnet18, layer by layer
    "conv1.weight": (64, 3, 7, 7),
    "layer1.0.conv1.weight": (64, 64, 3, 3),
    "layer2.0.downsample.0.weight": (128, 64, 1, 1),
    "layer2.0.downsample.1.running_var": (128,),
    "layer3.1.bn2.bias": (256,),
    "layer4.1.conv2.weight": (512, 512, 3, 3),
    "bn1.num_batches_tracked": (),
    "fc.weight": (1000, 512),
    "fc.bias": (1000,),
}


def test_resnet18_is_torchvisions():
    """By the count of its parameters (its page has it), and the names of its weights' file."""
    net = resnet.ResNet18(num_classes=1000)
    assert sum(p.numel() for p in net.parameters()) == 11_689_512
    state = net.state_dict()
    assert len(state) == 122
    for name, shape in TORCHVISION.items():
        assert state[name].shape == shape
    blocks = {re.match(r"layer\d\.\d", name)[0] for name in state if name.startswith("layer")}
    assert blocks == {f"layer{i}.{j}" for i in (1, 2, 3, 4) for j in (0, 1)}
    assert not any("layer1" in name and "downsample" in name for name in state)


def test_its_weights_load_without_the_last_layer():
    given = resnet.ResNet18(num_classes=1000).state_dict()
    colour, grey = resnet.ResNet18(3), resnet.ResNet18(1, num_classes=6)
    before = grey.fc.weight.clone()
    colour.load_backbone(given)
    grey.load_backbone(given)
    assert torch.equal(colour.layer4[1].conv2.weight, given["layer4.1.conv2.weight"])
    assert torch.equal(grey.fc.weight, before)
    # a grey image is one with three equal channels
    colour.eval()
    grey.eval()
    image = torch.rand(1, 1, 40, 40)
    latents = grey.layer1(grey.conv1(image))
    torch.testing.assert_close(latents, colour.layer1(colour.conv1(image.expand(1, 3, 40, 40))))
    given.pop("layer1.0.bn1.weight")
    with pytest.raises(RuntimeError, match=r"layer1\.0\.bn1\.weight"):
        colour.load_backbone(given)


def test_latents_of_frames_are_their_mean():
    net = resnet.ResNet18(3).eval()
    frames = torch.rand(2, 3, 3, 48, 40)
    with torch.no_grad():
        together = net(frames)
        alone = torch.stack([net(frames[:, t]) for t in range(3)], dim=1)
        assert together.shape == (2, 512)
        assert resnet.ResNet18(1).eval()(torch.rand(2, 1, 257, 60)).shape == (2, 512)
    torch.testing.assert_close(together, alone.mean(1))


def test_a_sequence_gives_its_last_step():
    net = resnet.SequenceTransformer(7).eval()
    assert len(net.layers.layers) == 5
    x = torch.randn(2, 6, 7)
    with torch.no_grad():
        assert net(x).shape == (2, 40)
        torch.testing.assert_close(net(x), net.layers(net.project(x))[:, -1])
        # no positions: the steps before the last may stand in any order
        order = torch.tensor([3, 1, 0, 4, 2, 5])
        torch.testing.assert_close(net(x[:, order]), net(x), atol=1e-5, rtol=1e-4)


def test_the_learning_rate_is_that_of_torchs_restarts():
    parameter = nn.Parameter(torch.zeros(1))
    reference = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(
        torch.optim.SGD([parameter], lr=1.0), T_0=4, T_mult=2
    )
    for step in (*range(200), 779, 780, 1019, 1020, 1021, 2043, 2044, 10_000):
        reference.step(step)
        (wanted,) = reference.get_last_lr()
        assert schedule.factor(step, full=0) == pytest.approx(wanted, abs=1e-9)
        assert schedule.factor(step) == pytest.approx(1.0 if step < 780 else wanted, abs=1e-9)


@pytest.mark.parametrize("method", models.METHODS)
def test_methods_differ_by_what_they_leave_out(method):
    run = runs.RUNS["mosi-vta"]
    objective = models.objective(run, method)
    regularized = (objective.loss.mipd_weight, objective.loss.contrastive_weight)
    assert regularized == ((0.01, 1.0) if method == "mcr" else (0, 0))
    assert objective.unimodal_weight == ((0.0 if method == "joint" else 0.01),) * 3
    torch.manual_seed(0)
    model = models.Multimodal(run, (20, 300, 5), method)
    inputs = [torch.randn(4, 6, width) for width in (20, 300, 5)]
    labels = torch.tensor([1.0, -2.0, 0.5, 1.0])
    model.eval()
    loss, logits = model(inputs, labels), model.predict(inputs)
    wanted = (logits["fused"].flatten() - labels).abs().mean()
    if method != "joint":
        alone = [(logits[name].flatten() - labels).abs().mean() for name in run.modalities]
        wanted = wanted + 0.01 * sum(alone)
    assert (method == "joint") == (set(logits) == {"fused"})
    if method == "mcr":
        assert not torch.allclose(loss, wanted)
    else:
        torch.testing.assert_close(loss, wanted)


class Died(Exception):
    pass


@pytest.fixture
def small(monkeypatch):
    """Tiny encoders and frames: what a run does around them is the same."""
    shrink(monkeypatch)


pytestmark = pytest.mark.usefixtures("one_thread")


def same(one, other):
    """Bit for bit, whatever they are."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize(
    ("name", "epochs", "stops"), [("mosi-vt", 3, (2, 7, 12)), ("cremad", 2, (1, 3, 5))]
)
def test_stopped_anywhere_it_goes_on_as_if_it_had_not_been(
    name, epochs, stops, small, tmp_path, monkeypatch
):
    """By Ctrl-C at a checkpoint, at an epoch's end and elsewhere; all of the state is compared:
    weights, Adam's moments, generators, counters, history.
    """
    write = papers.write_mosi if name == "mosi-vt" else papers.write_cremad
    write(tmp_path)
    run = runs.RUNS[name]
    annealed_soon = dataclasses.replace(run.recipe, lr_warmup_steps=3)
    monkeypatch.setitem(runs.RUNS, name, dataclasses.replace(run, recipe=annealed_soon))
    more = ("--epochs", str(epochs), "--start", "scratch", "--save-every", "2", "--batch-size", "2")
    straight, stopped = (command(name, tmp_path, tmp_path / out, *more) for out in ("one", "two"))
    train.main(straight)
    real, done = engine.Trainer._step, 0

    def step(trainer, *batch):
        nonlocal done
        loss = real(trainer, *batch)
        done += 1
        if done in stops:
            signal.raise_signal(signal.SIGINT)
        return loss

    monkeypatch.setattr(engine.Trainer, "_step", step)
    for _ in stops:
        with pytest.raises(SystemExit, match=r"saved in .*The same command goes on\."):
            train.main(stopped)
    train.main(stopped)
    one, two = (trained(tmp_path / out, "mcr-scratch", name) for out in ("one", "two"))
    assert same(one, two)
    assert one[0]["state"]["epoch"] == epochs
    assert one[0]["optimizer"]["param_groups"][0]["lr"] < run.scratch_rate
    assert done == one[0]["scheduler"]["last_epoch"]  # no step was done twice


def test_killed_in_a_step_it_goes_on_from_the_last_checkpoint(small, tmp_path, monkeypatch):
    papers.write_mosi(tmp_path)
    more = ("--epochs", "2", "--start", "scratch", "--save-every", "2")
    train.main(command("mosi-vt", tmp_path, tmp_path / "straight", *more))
    real, calls = engine.Trainer._step, 0

    def step(trainer, *batch):
        nonlocal calls
        calls += 1
        if calls in (4, 9):
            raise Died
        return real(trainer, *batch)

    monkeypatch.setattr(engine.Trainer, "_step", step)
    for _ in range(2):
        with pytest.raises(Died):
            train.main(command("mosi-vt", tmp_path, tmp_path / "killed", *more))
    train.main(command("mosi-vt", tmp_path, tmp_path / "killed", *more))
    assert calls == 8 + 2 + 1  # steps, deaths, and the third step again: a checkpoint every two
    both = [trained(tmp_path / out, "mcr-scratch") for out in ("straight", "killed")]
    assert same(*both)


def test_the_stages_follow_each_other(small, tmp_path, capsys):
    """Unimodal training first, its best weights in the multimodal model, and all figures."""
    papers.write_cremad(tmp_path)
    out = tmp_path / "out"
    with pytest.raises(
        FileNotFoundError, match=r"unimodal-audio/best\.pt is missing: run --stage unimodal"
    ):
        train.main(command("cremad", tmp_path, out, "--stage", "multimodal"))
    train.main(command("cremad", tmp_path, out, "--epochs", "1", "--amp"))
    assert "test, fused, epoch 1: accuracy" in capsys.readouterr().out
    folder = out / "cremad/fold0-seed0"
    alone = torch.load(folder / "unimodal-video/best.pt", weights_only=True)["model"]
    model = models.Multimodal(runs.RUNS["cremad"], (1, 3), "mcr")
    model.start_from("video", alone)
    assert torch.equal(model.encoders[1][1].weight, alone["encoder.1.weight"])
    assert torch.equal(model.heads[1].bias, alone["head.bias"])
    results = json.loads((folder / "mcr/results.json").read_text())
    assert results["settings"]["start"] == "pretrained"
    assert results["settings"]["learning_rate"] == 1e-4
    assert set(results["test"]) == {"fused", "audio", "video"}
    uni = json.loads((folder / "unimodal-audio/results.json").read_text())
    assert uni["settings"]["learning_rate"] == 1e-3
    lines = (folder / "mcr/history.csv").read_text().splitlines()
    assert lines[0] == "epoch,loss,accuracy"
    assert len(lines) == 2


def test_resnets_start_from_a_file_of_weights(tmp_path, monkeypatch):
    papers.write_cremad(tmp_path)
    given = resnet.ResNet18(num_classes=1000).state_dict()
    torch.save(given, tmp_path / "resnet18.pth")
    started = {}

    def fit(trainer, stop):
        started[trainer.main] = trainer.model.encoder, trainer.settings.start

    monkeypatch.setattr(engine.Trainer, "fit", fit)
    monkeypatch.setattr(train, "report", lambda trainer: None)
    more = ("--stage", "unimodal", "--weights", str(tmp_path / "resnet18.pth"))
    train.main(command("cremad", tmp_path, tmp_path / "out", *more))
    for modality in ("audio", "video"):
        encoder, start = started[modality]
        assert start == "weights"
        assert torch.equal(encoder.layer1[0].conv1.weight, given["layer1.0.conv1.weight"])
    assert torch.equal(started["video"][0].conv1.weight, given["conv1.weight"])


def test_the_best_epoch_is_the_validations(small, tmp_path, monkeypatch):
    """By the mean absolute error: the weights of its smallest one, and patience counted from it."""
    papers.write_mosi(tmp_path)
    errors = iter([3.0, 2.0, 2.5, 2.0, 2.2])
    weights = []
    real = engine.Trainer.evaluate

    def evaluate(trainer, split):
        figures = real(trainer, split)
        if split == "validation":
            weights.append(trainer.model.fusion.bias.clone())
            figures["fused"]["mae"] = next(errors)
        else:
            weights.append(trainer.model.fusion.bias.clone())
        return figures

    monkeypatch.setattr(engine.Trainer, "evaluate", evaluate)
    more = ("--epochs", "9", "--patience", "3", "--method", "joint", "--start", "scratch")
    train.main(command("mosi-vt", tmp_path, tmp_path / "out", *more))
    state, results = trained(tmp_path / "out", "joint-scratch")
    assert results["epochs"] == 5
    assert results["best"]["epoch"] == 2
    assert results["best"]["mae"] == 2.0
    assert torch.equal(weights[-1], weights[1])  # tested with the weights of epoch 2
    assert not torch.equal(weights[-1], state["model"]["fusion.bias"])


def test_missing_files_are_said_before_any_work(tmp_path):
    with pytest.raises(FileNotFoundError, match="docs/paper-datasets.md"):
        train.main(command("ave", tmp_path, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_help_says_what_was_not_checked(capsys):
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    shown = capsys.readouterr().out
    assert "no figure of the paper\nhas been reproduced" in shown
    assert set(runs.RUNS) <= set(re.findall(r"[\w-]+", shown))


SCRIPT = str(ROOT / "examples/paper/train.py")
BELOW = 2.0  # percent of importance, the monitor's default
SHARE = r"(\w+) ([\d.]+) %"


def starves_where_it_is_low(printed: str, below: float) -> None:
    """What the monitor says last of a short run, against the importances beside it."""
    low = re.findall(r"\w+ starves from the start \(importance ([\d.]+) %\)", printed)
    if low:
        assert all(float(share) < below for share in low), printed
        return
    shares = re.search(rf"No modality starves at step \d+ \(importance: ({SHARE}.*)\)", printed)
    assert shares, printed
    found = [float(share) for _, share in re.findall(SHARE, shares[1])]
    assert min(found) >= below
    assert sum(found) == pytest.approx(100, abs=0.3)


@pytest.mark.parametrize(
    "said",
    [
        "audio starves from the start (importance 3.0 %).",
        "No modality starves at step 4 (importance: video 99.0 %, audio 1.0 %).",
        "No modality starves at step 4 (importance: video 60.0 %, audio 20.0 %).",
        "Nothing was seen yet.",
    ],
)
def test_words_that_do_not_fit_their_numbers_are_found(said):
    with pytest.raises(AssertionError):
        starves_where_it_is_low(said, BELOW)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cremad", "ave", "mosi-vta"])
def test_the_script_runs_with_the_published_encoders(name, tmp_path):
    """Both stages in a process of its own, with one more that reads."""
    write = {"cremad": papers.write_cremad, "ave": papers.write_ave}.get(name, papers.write_mosi)
    write(tmp_path)
    more = ("--epochs", "1", "--start", "pretrained", "--workers", "1", "--batch-size", "2")
    printed = run_python(SCRIPT, *command(name, tmp_path, tmp_path / "out", *more)).stdout
    starves_where_it_is_low(printed, BELOW)
    figure = "mae" if name == "mosi-vta" else "accuracy"
    assert re.search(rf"test, fused, epoch 1: {figure} \d", printed)


@pytest.mark.slow
def test_sigterm_stops_the_script_with_all_saved(tmp_path):
    papers.write_mosi(tmp_path)
    more = ("--epochs", "400", "--patience", "400", "--start", "scratch")
    arguments = [sys.executable, SCRIPT, *command("mosi-vt", tmp_path, tmp_path / "out", *more)]
    last = tmp_path / "out/mosi-vt/fold0-seed0/mcr-scratch/last.pt"
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not last.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.terminate()
        told = process.stderr.read().decode()
    assert process.returncode == 1
    assert "The same command goes on." in told
    epoch = torch.load(last, weights_only=True)["state"]["epoch"]
    assert 0 < epoch < 400
    more = ("--epochs", str(epoch + 1), *more[2:])
    printed = run_python(SCRIPT, *command("mosi-vt", tmp_path, tmp_path / "out", *more)).stdout
    assert f"mcr-scratch, epoch {epoch + 1}: loss" in printed
    assert "epoch 1:" not in printed.split("test, fused")[0]
