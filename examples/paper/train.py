"""The published recipe on the paper's data sets.

python examples/paper/train.py cremad --data FOLDER [--stage unimodal|multimodal] [--method mcr]

Stage "unimodal" trains each encoder with a head of its own; stage "multimodal" starts from these
where the published run does. Without --stage it is one after the other. The same command goes on
where it was stopped. docs/paper-datasets.md says what FOLDER has to hold and what differs from the
published code. None of these data sets was at hand when this was written: no figure of the paper
has been reproduced with it, and it has run on made-up files of their formats only.
"""

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import mcr_fast
from paper.engine import Figures, Limits, Settings, Trainer
from paper.models import FUSED, METHODS, Multimodal, Unimodal
from paper.resnet import ResNet18, read_weights
from paper.runs import RUNS, Data, open_data
from paper.stop import Stop

STAGES = ("unimodal", "multimodal")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("name", choices=RUNS, help="the data set and its modalities: video, text, audio")
    add("--data", type=Path, required=True, help="the folder (or feature file) of the data set")
    add("--stage", choices=STAGES, help="only this one")
    add("--method", choices=METHODS, default="mcr", help="of the multimodal stage")
    add("--start", choices=("pretrained", "scratch"), help="default: as published for MCR")
    add("--epochs", type=int, help="at most; default: as published")
    add("--patience", type=int, help="epochs without a better one; default: as published")
    add("--learning-rate", type=float, help="default: as published")
    add("--batch-size", type=int, help="default: as published")
    add("--fold", type=int, default=0, help="of CREMA-D, 0 to 4")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("paper-out"), help="for checkpoints and results")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--amp", action="store_true", help="forward in bfloat16 where that is safe")
    add("--workers", type=int, default=4, help="processes that read")
    add("--save-every", type=int, default=200, help="steps between two checkpoints in an epoch")
    add("--allow-missing", action="store_true", help="leave out clips without their files")
    add("--weights", type=Path, help="torchvision's ResNet-18 to start the unimodal stage from")
    return parser.parse_args(arguments)


def folder_of(args: argparse.Namespace, job: str) -> Path:
    return args.out / args.name / f"fold{args.fold}-seed{args.seed}" / job


def open_all(args: argparse.Namespace, modalities: tuple[str, ...]) -> Data:
    options = {"fold": args.fold, "allow_missing": args.allow_missing, "seed": args.seed}
    return open_data(args.name, args.data, modalities, **options)


def limits_of(args: argparse.Namespace, patience: int) -> Limits:
    epochs = RUNS[args.name].epochs if args.epochs is None else args.epochs
    patience = patience if args.patience is None else args.patience
    return Limits(epochs, patience, args.device, args.workers, args.save_every)


def settings_of(args: argparse.Namespace, method: str, start: str, rate: float) -> Settings:
    recipe = RUNS[args.name].recipe
    return Settings(
        data=args.name,
        method=method,
        fold=args.fold,
        seed=args.seed,
        start=start,
        learning_rate=rate if args.learning_rate is None else args.learning_rate,
        batch_size=recipe.batch_size if args.batch_size is None else args.batch_size,
        lr_warmup_steps=recipe.lr_warmup_steps,
        clip_norm=recipe.clip_norm,
        amp=args.amp,
    )


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
        settings = settings_of(args, f"unimodal {modality}", start, run.unimodal_rate)
        trainer = Trainer(
            model,
            data,
            main=modality,
            by=run.by,
            make_optimizer=run.recipe.optimizer,
            folder=folder_of(args, f"unimodal-{modality}"),
            settings=settings,
            limits=limits_of(args, run.unimodal_patience),
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
    if start == "pretrained":
        for modality in run.modalities:
            model.start_from(modality, pretrained(folder_of(args, f"unimodal-{modality}")))
    published = start == "pretrained" or args.method == "mcr"
    rate = run.recipe.learning_rate if published else run.scratch_rate
    job = args.method if start == "pretrained" else f"{args.method}-scratch"
    trainer = Trainer(
        model,
        data,
        main=FUSED,
        by=run.by,
        make_optimizer=run.recipe.optimizer,
        folder=folder_of(args, job),
        settings=settings_of(args, args.method, start, rate),
        limits=limits_of(args, run.patience),
    )
    monitor = mcr_fast.MCRMonitor(run.modalities, every=50)
    monitor.watch(model.objective)
    trained = not trainer.finished
    trainer.fit(stop)
    if args.method == "mcr" and trained:
        print(monitor.summary())
    report(trainer)


def start_of(args: argparse.Namespace) -> str:
    if args.start:
        return args.start
    return "pretrained" if RUNS[args.name].recipe.pretrained else "scratch"


def pretrained(folder: Path) -> dict[str, Any]:
    """The best weights of a modality alone."""
    if not (folder / "best.pt").exists():
        raise FileNotFoundError(
            f"{folder / 'best.pt'} is missing: run the same command with --stage unimodal first, "
            "or start from random weights with --start scratch"
        )
    return torch.load(folder / "best.pt", map_location="cpu", weights_only=True)["model"]


def report(trainer: Trainer) -> Figures:
    """Test figures of the best epoch, printed and in ``results.json``."""
    trainer.load_best()
    test = trainer.evaluate("test")
    validation = trainer.state.history[trainer.state.best_epoch]
    results = {
        "settings": vars(trainer.settings),
        "epochs": trainer.state.epoch,
        "best": validation,
        "test": test,
        "versions": {"torch": torch.__version__, "mcr_fast": mcr_fast.__version__},
    }
    text = json.dumps(results, indent=2)
    (trainer.folder / "results.json").write_text(text + "\n", encoding="utf-8")
    for name, figures in test.items():
        shown = ", ".join(f"{key} {value:.4f}" for key, value in figures.items())
        print(f"test, {name}, epoch {trainer.state.best_epoch + 1}: {shown}")
    return test


def main(arguments: list[str] | None = None) -> None:
    args = parse(arguments)
    stages = [args.stage] if args.stage else [s for s in STAGES if needed(args, s)]
    work = {"unimodal": partial(run_unimodal, args), "multimodal": partial(run_multimodal, args)}
    if not RUNS[args.name].regression:
        open_all(args, RUNS[args.name].modalities)  # what is missing is said before any work
    with Stop() as stop:
        for stage in stages:
            work[stage](stop)


def needed(args: argparse.Namespace, stage: str) -> bool:
    return stage == "multimodal" or start_of(args) == "pretrained"


if __name__ == "__main__":
    main()
