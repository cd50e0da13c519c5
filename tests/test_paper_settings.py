"""train.py's settings: the published ones, those of the data, and options that make no sense."""

import dataclasses
import json
import shutil

import papers
import pytest
import torch
from paper import engine, models, runs, train
from paper_tiny import command, shrink, trained

from mcr_fast.recipes import PUBLISHED

# The released run script, and for epochs and patience ("max_epoch", "n_steps_stop") the
# configurations that it names, kkontras/MCR at 54adeea: configs/*/default_config_*.json,
# CREMA_D/release/res/MCR.json and AVE/release/res/unimodal_*.json. In turn: the recipe; rate,
# epochs and patience of the unimodal stage, of the multimodal one; rate of joint training from
# random weights; lambda_M, lambda_uni; whether MCR starts from unimodal training.
AS_PUBLISHED = {
    "cremad": ("crema_d/resnet18", (1e-3, 1500, 100), (1e-4, 1500, 25), 1e-3, (0.1, 0.01), True),
    "ave": ("ave/resnet18", (1e-3, 1000, 100), (1e-4, 1500, 150), 1e-3, (0.01, 0.01), True),
    "mosi-vt": (
        *("mosi_vt/transformer", (1e-4, 100, 30), (1e-4, 100, 30), 1e-4, (0.001, 0.001), False),
    ),
    "mosi-vta": (
        *("mosi_vta/transformer", (1e-4, 100, 30), (1e-4, 100, 30), 1e-4, (0.01, 0.01), False),
    ),
    "mosei-vt": (
        *("mosei_vt/transformer", (1e-4, 100, 30), (1e-4, 100, 30), 1e-4, (0.01, 0.1), True),
    ),
    "mosei-vta": (
        *("mosei_vta/transformer", (1e-4, 100, 30), (1e-4, 100, 30), 1e-4, (0.001, 0.001), True),
    ),
}


@pytest.fixture
def small(monkeypatch):
    shrink(monkeypatch)


pytestmark = pytest.mark.usefixtures("one_thread")


def data_of(name, folder):
    """The file or folder of a set, made up."""
    if name == "cremad":
        papers.write_cremad(folder)
    elif name == "ave":
        papers.write_ave(folder)
    else:
        return papers.write_mosi(folder)
    return folder


def made(monkeypatch, arguments):
    """Settings and limits of each trainer that a command makes, by its folder's name."""
    found = {}

    def fit(trainer, stop):
        found[trainer.folder.name] = trainer.settings, trainer.limits, trainer.optimizer

    monkeypatch.setattr(engine.Trainer, "fit", fit)
    monkeypatch.setattr(train, "report", lambda trainer: None)
    monkeypatch.setattr(train, "pretrained", lambda *_: {})
    monkeypatch.setattr(models.Multimodal, "start_from", lambda *_: None)
    train.main(arguments)
    return found


@pytest.mark.parametrize("name", AS_PUBLISHED)
def test_runs_have_the_published_settings(name, small, tmp_path, monkeypatch):
    key, unimodal, multimodal, scratch, weights, pre = AS_PUBLISHED[name]
    run, recipe = runs.RUNS[name], PUBLISHED[key]
    assert set(AS_PUBLISHED) == set(runs.RUNS)
    assert run.recipe is recipe
    assert (recipe.mipd_weight, recipe.unimodal_weight, recipe.pretrained) == (*weights, pre)
    assert run.by == ("mae" if recipe.task == "regression" else "accuracy")
    assert len(run.modalities) == len(recipe.latent_dims)
    data = data_of(name, tmp_path)
    always = (name, "--data", str(data), "--device", "cpu", "--out", str(tmp_path / "out"))
    jobs = made(monkeypatch, [*always, "--start", "pretrained"])
    assert set(jobs) == {*(f"unimodal-{modality}" for modality in run.modalities), "mcr"}
    for job, (settings, limits, optimizer) in jobs.items():
        wanted = multimodal if job == "mcr" else unimodal
        assert (settings.learning_rate, limits.epochs, limits.patience) == wanted, job
        assert (settings.batch_size, settings.lr_warmup_steps) == (32, 780)
        assert settings.clip_norm is None
        assert type(optimizer) is torch.optim.Adam
        assert optimizer.defaults["weight_decay"] == 1e-4
        assert optimizer.defaults["lr"] == wanted[0]
    for method in models.METHODS:
        jobs = made(monkeypatch, [*always, "--start", "scratch", "--method", method])
        ((settings, limits, _),) = jobs.values()
        # one rate for all that start from there, or the methods could not be compared
        assert settings.learning_rate == scratch
        assert (limits.epochs, limits.patience) == multimodal[1:]


def test_a_checkpoint_of_other_settings_is_refused(small, tmp_path):
    papers.write_mosi(tmp_path)
    start = ("--start", "scratch", "--epochs", "1")
    train.main(command("mosi-vt", tmp_path, tmp_path / "out", *start))
    other = command("mosi-vt", tmp_path, tmp_path / "out", *start, "--learning-rate", "0.01")
    with pytest.raises(ValueError, match=r"made with learning_rate=0\.0001 instead of 0\.01"):
        train.main(other)
    more = ("--start", "scratch", "--epochs", "2")  # which changes no step
    train.main(command("mosi-vt", tmp_path, tmp_path / "out", *more))
    assert trained(tmp_path / "out", "mcr-scratch")[1]["epochs"] == 2


def test_a_checkpoint_that_lacks_a_setting_is_refused(small, tmp_path):
    papers.write_mosi(tmp_path)
    arguments = command(
        "mosi-vt", tmp_path, tmp_path / "out", "--start", "scratch", "--epochs", "1"
    )
    train.main(arguments)
    last = tmp_path / "out/mosi-vt/fold0-seed0/mcr-scratch/last.pt"
    content = torch.load(last, weights_only=True)
    del content["settings"]["content"]
    torch.save(content, last)
    with pytest.raises(ValueError, match="made with content=None instead of '[0-9a-f]{12}'"):
        train.main(arguments)


def test_a_checkpoint_of_other_data_is_refused(small, tmp_path):
    """Of another size, of the same size, and of another name."""
    start = ("--start", "scratch", "--epochs", "1")
    path = papers.write_mosi(tmp_path)
    train.main(command("mosi-vt", tmp_path, tmp_path / "out", *start))
    shutil.copy(path, tmp_path / "copy.pkl")
    copied = command("mosi-vt", tmp_path / "copy.pkl", tmp_path / "out", *start)
    with pytest.raises(ValueError, match=r"source='mosi_data.pkl' instead of 'copy.pkl'; give"):
        train.main(copied)
    papers.write_mosi(tmp_path, (14, 5, 6))
    with pytest.raises(ValueError, match=r"rows=\(14, 6, 6\) instead of \(14, 5, 6\), content="):
        train.main(command("mosi-vt", tmp_path, tmp_path / "out", *start))
    papers.write_mosi(tmp_path, seed=1)
    with pytest.raises(ValueError, match=r"made with content='\w+' instead of '\w+'; give"):
        train.main(command("mosi-vt", tmp_path, tmp_path / "out", *start))
    shutil.move(tmp_path / "copy.pkl", path)  # as it was, it goes on
    train.main(command("mosi-vt", tmp_path, tmp_path / "out", *start))


def test_folds_that_appear_later_are_other_data(small, tmp_path):
    papers.write_cremad(tmp_path)
    folds = (tmp_path / "data_splits_VALV.pkl").read_text()
    (tmp_path / "data_splits_VALV.pkl").unlink()
    names = papers.CREMAD_NAMES
    listed = [f"{name},X" for name in (*names["train"], *names["validation"])]
    (tmp_path / "train.csv").write_text("\n".join(listed))
    (tmp_path / "test.csv").write_text("\n".join(f"{name},X" for name in names["test"]))
    arguments = command("cremad", tmp_path, tmp_path / "out", "--start", "scratch", "--epochs", "1")
    train.main(arguments)
    with pytest.raises(ValueError, match="allow_missing=False instead of True"):
        train.main([*arguments, "--allow-missing"])
    (tmp_path / "data_splits_VALV.pkl").write_text(folds)
    with pytest.raises(ValueError, match="source='train.csv, test.csv' instead of 'data_splits"):
        train.main(arguments)


def test_the_second_stage_starts_from_finished_runs_only(small, tmp_path, monkeypatch):
    papers.write_cremad(tmp_path)
    out = tmp_path / "out"
    multimodal = command("cremad", tmp_path, out, "--stage", "multimodal", "--epochs", "1")
    unimodal = command("cremad", tmp_path, out, "--stage", "unimodal", "--epochs", "2")
    evaluate = engine.Trainer.evaluate

    def dies_in_the_second_epoch(trainer, split):
        if trainer.state.epoch == 1:
            raise KeyboardInterrupt
        return evaluate(trainer, split)

    finish = r"unimodal-audio/results\.json is missing, so .* not finished: finish --stage unimodal"
    with monkeypatch.context() as during:
        during.setattr(engine.Trainer, "evaluate", dies_in_the_second_epoch)
        with pytest.raises(KeyboardInterrupt):
            train.main(unimodal)
        with pytest.raises(FileNotFoundError, match=finish):
            train.main(multimodal)
    train.main(unimodal)
    train.main(multimodal)
    # a finished run that goes on is not finished until it has done so
    with monkeypatch.context() as during:
        during.setattr(engine.Trainer, "_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train.main([*unimodal[:-1], "3"])
    with pytest.raises(FileNotFoundError, match=finish):
        train.main(multimodal)


def test_the_second_stage_starts_from_runs_of_its_data_only(small, tmp_path, capsys):
    papers.write_cremad(tmp_path)
    shutil.rmtree(tmp_path / "Image-01-FPS" / papers.CREMAD_NAMES["train"][0])
    out = tmp_path / "out"
    more = ("--epochs", "1", "--allow-missing")
    train.main(command("cremad", tmp_path, out, *more))  # audio has a clip more than video
    assert "audio starts from its epoch 1, the best of 1" in capsys.readouterr().out
    results = [
        json.loads((out / f"cremad/fold0-seed0/{job}/results.json").read_text())["settings"]
        for job in ("unimodal-audio", "unimodal-video", "mcr")
    ]
    assert [each["rows"] for each in results] == [[6, 3, 2], [5, 3, 2], [5, 3, 2]]
    papers.write_cremad(tmp_path)
    shutil.rmtree(out / "cremad/fold0-seed0/mcr")
    with pytest.raises(ValueError, match=r"rows=\(5, 3, 2\) instead of \(6, 3, 2\).*unimodal"):
        train.main(command("cremad", tmp_path, out, *more, "--stage", "multimodal"))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mosi-vt", ("--fold", "0"), "--fold: mosi-vt has no folds"),
        ("ave", ("--fold", "1"), "--fold: ave has no folds"),
        ("mosi-vt", ("--weights", "x"), "--weights: mosi-vt has no ResNet"),
        ("mosi-vt", ("--allow-missing",), "--allow-missing: mosi-vt has no files of clips"),
        ("cremad", ("--weights", "x", "--stage", "multimodal"), "--weights: the unimodal stage"),
        ("ave", ("--weights", "x", "--start", "scratch"), "--weights: the unimodal stage"),
        ("ave", ("--epochs", "0"), "--epochs: must be 1 or more, got 0"),
        ("ave", ("--epochs", "x"), "--epochs: invalid whole number value: 'x'"),
        ("ave", ("--patience", "0"), "--patience: must be 1 or more"),
        ("ave", ("--batch-size", "1"), "--batch-size: must be 2 or more, got 1"),
        ("ave", ("--save-every", "0"), "--save-every: must be 1 or more"),
        ("ave", ("--learning-rate", "nan"), "--learning-rate: must be above 0 and finite"),
    ],
)
def test_options_that_make_no_sense_are_named(name, options, message, tmp_path, capsys):
    with pytest.raises(SystemExit):
        train.main([name, "--data", str(tmp_path), "--out", str(tmp_path / "out"), *options])
    assert f"argument {message}" in capsys.readouterr().err


def test_limits_and_batches_are_checked_without_the_options_too():
    with pytest.raises(ValueError, match="epochs must be 1 or more, got 0"):
        engine.Limits(epochs=0, patience=1)
    settings = train.settings_of(
        train.parse(["mosi-vt", "--data", "x"]), Rows(), method="joint", start="scratch", rate=1.0
    )
    alone = dataclasses.replace(settings, batch_size=1)
    with pytest.raises(ValueError, match=r"batch_size \(--batch-size\) must be 2 or more, got 1"):
        engine._order(9, alone, 0)
    with pytest.raises(ValueError, match="2 rows at least are needed to train on, and there are 1"):
        engine._order(1, settings, 0)


class Rows:
    source, rows, content = "x", (1, 1, 1), ""


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_not_finite_ends_the_run_and_keeps_the_last_good_one(
    where, small, tmp_path, monkeypatch
):
    """In the middle of an epoch, of 7 steps with a checkpoint every two."""
    papers.write_mosi(tmp_path)
    forward, step, done = models.Multimodal.forward, engine.Trainer._step, 0

    def bad(model, *batch):
        loss = forward(model, *batch)
        if where == "loss":
            return loss * float("nan") if done == 2 else loss
        if done == 3:  # in the last step before a checkpoint no loss shows it
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    def counted(trainer, *batch):
        nonlocal done
        loss = step(trainer, *batch)
        done += 1
        return loss

    monkeypatch.setattr(models.Multimodal, "forward", bad)
    monkeypatch.setattr(engine.Trainer, "_step", counted)
    more = ("--start", "scratch", "--save-every", "2", "--batch-size", "2")
    what = "the loss of epoch 1 is nan" if where == "loss" else r"\S+ is not finite in epoch 1"
    with pytest.raises(FloatingPointError, match=rf"{what}, after 4 steps .*last\.pt is kept"):
        train.main(command("mosi-vt", tmp_path, tmp_path / "out", *more))
    state = torch.load(tmp_path / "out/mosi-vt/fold0-seed0/mcr-scratch/last.pt", weights_only=True)
    assert state["state"]["batch"] == 2
    assert all(x.isfinite().all() for x in state["model"].values() if x.is_floating_point())


def test_a_loss_that_is_not_finite_ends_the_first_epoch(small, tmp_path, monkeypatch):
    papers.write_mosi(tmp_path)
    forward = models.Multimodal.forward
    monkeypatch.setattr(models.Multimodal, "forward", lambda *x: forward(*x) * float("nan"))
    with pytest.raises(FloatingPointError, match=r"the loss of epoch 1 is nan.*nothing was saved"):
        train.main(command("mosi-vt", tmp_path, tmp_path / "out", "--start", "scratch"))


def test_validation_figures_that_are_no_numbers_are_said(small, tmp_path, monkeypatch, capsys):
    papers.write_mosi(tmp_path)
    evaluate = engine.Trainer.evaluate

    def no_number(trainer, split):
        return {name: {**x, "mae": float("nan")} for name, x in evaluate(trainer, split).items()}

    monkeypatch.setattr(engine.Trainer, "evaluate", no_number)
    more = ("--start", "scratch", "--epochs", "2")
    with pytest.raises(FloatingPointError, match="no epoch of 2 was better .*mae is not a number"):
        train.main(command("mosi-vt", tmp_path, tmp_path / "out", *more))
    assert "mae nan (no best one yet)" in capsys.readouterr().out
