"""The published recipe on the paper's data sets.

python examples/paper/train.py cremad --data FOLDER [--stage unimodal|multimodal] [--method mcr]

Stage "unimodal" trains each encoder with a head of its own; stage "multimodal" starts from these
where the published run does. Without --stage it is one after the other. The same command goes on
where it was stopped. docs/paper-datasets.md says what FOLDER has to hold and what differs from the
published code. None of these data sets was at hand when this was written: no figure of the paper
has been reproduced with it, and it has run on made-up files of their formats only.
"""

import argparse
import dataclasses
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import mcr_fast
from paper import options
from paper.engine import RESULTS, Figures, Trainer
from paper.models import FUSED, Multimodal, Unimodal
from paper.options import stages_of, start_of
from paper.resnet import ResNet18, read_weights
from paper.runs import RUNS, Data, Run, open_data
from paper.settings import OF_DATA, Limits, Settings, differences
from paper.stop import Stop


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    return options.parse(__doc__, arguments)


def folder_of(args: argparse.Namespace, job: str) -> Path:
    return args.out / args.name / f"fold{args.fold}-seed{args.seed}" / job


def open_all(args: argparse.Namespace, modalities: tuple[str, ...]) -> Data:
    wanted = {"fold": args.fold, "allow_missing": args.allow_missing, "seed": args.seed}
    return open_data(args.name, args.data, modalities, **wanted)


def limits_of(args: argparse.Namespace, epochs: int, patience: int) -> Limits:
    epochs = epochs if args.epochs is None else args.epochs
    patience = patience if args.patience is None else args.patience
    return Limits(epochs, patience, args.device, args.workers, args.save_every)


def settings_of(
    args: argparse.Namespace, data: Data, *, method: str, start: str, rate: float
) -> Settings:
    recipe = RUNS[args.name].recipe
    return Settings(
        data=args.name,
        method=method,
        fold=args.fold,
        seed=args.seed,
        start=start,
        source=data.source,
        rows=data.rows,
        content=data.content,
        allow_missing=args.allow_missing,
        learning_rate=rate if args.learning_rate is None else args.learning_rate,
        batch_size=recipe.batch_size if args.batch_size is None else args.batch_size,
        lr_warmup_steps=recipe.lr_warmup_steps,
        clip_norm=recipe.clip_norm,
        amp=args.amp,
    )


def rate_of(run: Run, start: str) -> float:
    """Of the multimodal stage: one for all methods, so that they can be compared."""
    return run.recipe.learning_rate if start == "pretrained" else run.scratch_rate


def run_unimodal(args: argparse.Namespace, stop: Stop) -> None:
    run = RUNS[args.name]
    for modality in run.modalities:
        data = open_all(args, (modality,))
        print(f"{args.name}, {modality} alone: {data.describe()}")
        torch.manual_seed(args.seed)
        model = Unimodal(run, modality, data.widths[0])
        if args.weights and isinstance(model.encoder, ResNet18):
            model.encoder.load_backbone(read_weights(args.weights))
        start = "weights" if args.weights else "scratch"
        settings = settings_of(
            args, data, method=f"unimodal {modality}", start=start, rate=run.unimodal_rate
        )
        trainer = Trainer(
            model,
            data,
            main=modality,
            by=run.by,
            make_optimizer=run.recipe.optimizer,
            folder=folder_of(args, f"unimodal-{modality}"),
            settings=settings,
            limits=limits_of(args, run.unimodal_epochs, run.unimodal_patience),
        )
        trainer.fit(stop)
        report(trainer)


def run_multimodal(args: argparse.Namespace, stop: Stop) -> None:
    run = RUNS[args.name]
    start = start_of(args)
    data = open_all(args, run.modalities)
    print(f"{args.name}, {args.method} from {start}: {data.describe()}")
    torch.manual_seed(args.seed)
    model = Multimodal(run, data.widths, args.method)
    settings = settings_of(args, data, method=args.method, start=start, rate=rate_of(run, start))
    if start == "pretrained":
        for modality in run.modalities:
            wanted = settings
            if args.allow_missing:  # one modality's clips can be others than those of both
                part = open_all(args, (modality,))
                wanted = dataclasses.replace(settings, rows=part.rows, content=part.content)
            model.start_from(modality, pretrained(args, modality, wanted))
    job = args.method if start == "pretrained" else f"{args.method}-scratch"
    trainer = Trainer(
        model,
        data,
        main=FUSED,
        by=run.by,
        make_optimizer=run.recipe.optimizer,
        folder=folder_of(args, job),
        settings=settings,
        limits=limits_of(args, run.epochs, run.patience),
    )
    monitor = mcr_fast.MCRMonitor(run.modalities, every=50)
    monitor.watch(model.objective)
    trained = not trainer.finished
    trainer.fit(stop)
    if args.method == "mcr" and trained:
        print(monitor.summary())
    report(trainer)


def pretrained(args: argparse.Namespace, modality: str, wanted: Settings) -> dict[str, Any]:
    """The best weights of a modality alone, of a run that is finished and had the same data.

    Raises:
        FileNotFoundError: there is none, or it is not finished.
        ValueError: it had other data than `wanted` says.
    """
    folder = folder_of(args, f"unimodal-{modality}")
    for name, do in (("best.pt", "run"), (RESULTS, "finish")):
        if not (folder / name).exists():
            what = "" if do == "run" else ", so that training is not finished"
            raise FileNotFoundError(
                f"{folder / name} is missing{what}: {do} --stage unimodal with the same options "
                "first, or start from random weights with --start scratch"
            )
    results = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
    other = differences(results["settings"], wanted, OF_DATA)
    if other:
        raise ValueError(
            f"{folder / RESULTS} was made with {other}: run --stage unimodal for these data with "
            "another --out, or start from random weights with --start scratch"
        )
    best = results["best"]["epoch"]
    print(f"{modality} starts from its epoch {best}, the best of {results['epochs']}")
    return torch.load(folder / "best.pt", map_location="cpu", weights_only=True)["model"]


def report(trainer: Trainer) -> Figures:
    """Test figures of the best epoch, printed and in ``results.json``."""
    trainer.load_best()
    test = trainer.evaluate("test")
    validation = trainer.state.history[trainer.state.best_epoch]
    results = {
        "settings": dataclasses.asdict(trainer.settings),
        "epochs": trainer.state.epoch,
        "best": validation,
        "test": test,
        "versions": {"torch": torch.__version__, "mcr_fast": mcr_fast.__version__},
    }
    path = trainer.folder / RESULTS
    beside = path.with_suffix(".tmp")  # so that it is there whole or not at all
    beside.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)
    for name, figures in test.items():
        shown = ", ".join(f"{key} {value:.4f}" for key, value in figures.items())
        print(f"test, {name}, epoch {trainer.state.best_epoch + 1}: {shown}")
    return test


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    work = {"unimodal": partial(run_unimodal, args), "multimodal": partial(run_multimodal, args)}
    if not RUNS[args.name].regression:
        open_all(args, RUNS[args.name].modalities)  # what is missing is said before any work
    with Stop() as stop:
        for stage in stages_of(args):
            work[stage](stop)


if __name__ == "__main__":
    main()
