"""The script's options, and what is wrong with some of them, said before any work."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path

import torch

from paper.models import METHODS
from paper.runs import RUNS

STAGES = ("unimodal", "multimodal")


def parse(description: str | None, arguments: list[str] | None = None) -> argparse.Namespace:
    """Of the command line, or of `arguments`; ends with argparse's error if they make no sense."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    _add_all(parser)
    args = parser.parse_args(arguments)
    _refuse_unused(parser, args)
    args.fold = args.fold or 0
    return args


def start_of(args: argparse.Namespace) -> str:
    """What the multimodal stage starts from: "pretrained" or "scratch"."""
    if args.start:
        return str(args.start)
    return "pretrained" if RUNS[args.name].recipe.pretrained else "scratch"


def stages_of(args: argparse.Namespace) -> list[str]:
    """The one that was asked for, or the multimodal one after what it needs."""
    if args.stage:
        return [args.stage]
    return list(STAGES if start_of(args) == "pretrained" else STAGES[1:])


def _add_all(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("name", choices=RUNS, help="the data set and its modalities: video, text, audio")
    add("--data", type=Path, required=True, help="the folder (or feature file) of the data set")
    add("--stage", choices=STAGES, help="only this one")
    add("--method", choices=METHODS, default="mcr", help="of the multimodal stage")
    add(
        *("--start",),
        choices=("pretrained", "scratch"),
        help="of the multimodal stage, default: as published for MCR. All methods have the same "
        "learning rate: from pretrained encoders MCR's, from scratch that of joint training "
        "(1e-3 on CREMA-D and AVE, where no MCR from scratch is published)",
    )
    add("--epochs", type=_whole(1), help="at most; default: as published")
    add("--patience", type=_whole(1), help="epochs without a better one; default: as published")
    add("--learning-rate", type=_rate, help="default: as published")
    # batch norm, and a donor for each row
    add("--batch-size", type=_whole(2), help="2 or more; default: as published")
    add("--fold", type=int, help="of CREMA-D, 0 to 4; default: 0")
    add("--seed", type=_whole(0), default=0)
    add("--out", type=Path, default=Path("paper-out"), help="for checkpoints and results")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--amp", action="store_true", help="forward in bfloat16 where that is safe")
    add("--workers", type=_whole(0), default=4, help="processes that read")
    add(
        *("--save-every",),
        type=_whole(1),
        default=200,
        help="steps between two checkpoints in an epoch",
    )
    add("--allow-missing", action="store_true", help="leave out clips without their files")
    add(
        *("--weights",),
        type=Path,
        help="torchvision's ResNet-18 to start the unimodal stage of CREMA-D and AVE from",
    )


def _refuse_unused(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    regression = RUNS[args.name].regression
    if args.fold is not None and args.name != "cremad":
        parser.error(f"argument --fold: {args.name} has no folds, only cremad has")
    if args.allow_missing and regression:
        parser.error(f"argument --allow-missing: {args.name} has no files of clips")
    if args.weights is None:
        return
    if regression:
        parser.error(f"argument --weights: {args.name} has no ResNet, only cremad and ave have")
    if "unimodal" not in stages_of(args):
        parser.error(
            "argument --weights: the unimodal stage starts from them, and the multimodal one, "
            "which alone was asked for, does not"
        )


def _whole(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"must be {least} or more, got {value}")
        return value

    number.__name__ = "whole number"  # which argparse calls it by if it is none
    return number


def _rate(text: str) -> float:
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, got {text}")
    return value
