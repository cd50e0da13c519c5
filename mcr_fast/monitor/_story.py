"""What a history says: who starves, since when, and when that turned."""

from collections.abc import Sequence
from typing import NamedTuple

Record = dict[str, float]
PATIENCE = 2  # records in a row that make a turn


class Turn(NamedTuple):
    """A modality began or ceased to starve."""

    modality: str
    step: int
    starves: bool
    record: int  # its place in the history


def turns_of(history: Sequence[Record], modalities: Sequence[str], below: float) -> list[Turn]:
    """The turning points, in the order of their steps.

    A modality that is low, or not low, in `PATIENCE` records in a row has turned at the first of
    these; a single record that differs is noise.
    """
    found = []
    for name in modalities:
        starves, run = False, 0
        for at, record in enumerate(history):
            low = record[f"importance/{name}"] < below  # NaN is not less
            run = run + 1 if low != starves else 0
            if run == min(PATIENCE, len(history)):
                starves, first = low, at - run + 1
                run = 0
                found.append(Turn(name, int(history[first]["step"]), starves, first))
    return sorted(found, key=lambda turn: turn.step)


def percent(share: float) -> str:
    """1.3 %; more digits would be noise."""
    return f"{100 * share:.1f} %"


def headline_of(history: Sequence[Record], modalities: Sequence[str], below: float) -> str:
    """One sentence: who starves, since when."""
    if not history:
        return "Nothing was seen yet"
    last, turns = history[-1], turns_of(history, modalities, below)
    starving = []
    for name in modalities:
        of_name = [turn for turn in turns if turn.modality == name]
        if of_name and of_name[-1].starves:
            turn = of_name[-1]
            since = "from the start" if turn.record == 0 else f"since step {turn.step}"
            share = percent(last[f"importance/{name}"])
            starving.append(f"{name} starves {since} (importance {share})")
    if starving:
        return "; ".join(starving)
    shares = ", ".join(f"{name} {percent(last[f'importance/{name}'])}" for name in modalities)
    return f"No modality starves at step {int(last['step'])} (importance: {shares})"


def summary_of(history: Sequence[Record], modalities: Sequence[str], below: float) -> str:
    """The headline, what turned before, and what is known of those who starve."""
    sentences = [headline_of(history, modalities, below)]
    turns = turns_of(history, modalities, below) if history else []
    for name in modalities:
        of_name = [turn for turn in turns if turn.modality == name]
        for begun, ended in zip(of_name, of_name[1:], strict=False):
            if begun.starves:
                sentences.append(f"{name} starved from step {begun.step} to {ended.step}")
        if of_name and of_name[-1].starves:
            sentences += _beside(history[-1], name)
    return ". ".join(sentences) + "."


def _beside(last: Record, name: str) -> list[str]:
    """What else the last record says of a modality that starves."""
    alone, cosine = last[f"unimodal_accuracy/{name}"], last[f"grad_cosine/{name}"]
    found = []
    if alone == alone:
        found.append(f"On its own {name} is right in {percent(alone)} of the rows")
    if cosine == cosine:
        found.append(
            f"The cosine of the task's and the regularizer's gradients of {name} is {cosine:+.2f}"
        )
    return found
