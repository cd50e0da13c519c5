"""A training run that can be stopped anywhere and goes on as if it had not been.

What is random has its seed from what it is for: the order of the batches from seed and epoch, a
frame's box from seed, epoch and index. What torch draws (donors, dropout) goes on from the state
of its generators in the checkpoint. On a CPU the weights are then bit for bit those of a run that
was never stopped.
"""

import csv
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from paper import metrics
from paper.runs import Data
from paper.schedule import factor
from paper.settings import Limits, Settings, State, differences
from paper.stop import Stop

Figures = dict[str, dict[str, float]]  # of each set of logits
RESULTS = "results.json"


class Trainer:
    """Trains a model on data, in a folder.

    Args:
        model: of which `forward` is the loss and `predict` gives the logits.
        data: its splits.
        main: which of the predicted logits decide the best epoch.
        by: the figure of these.
        make_optimizer: from parameters.
        folder: for ``last.pt``, ``best.pt`` and ``history.csv``; ``results.json`` in it is taken
            to be that of the finished run, and goes when there is something left to train.
        settings: what the run is made with.
        limits: when it ends.

    Raises:
        ValueError: the folder has a checkpoint of other settings.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Data,
        *,
        main: str,
        by: str,
        make_optimizer: Callable[..., torch.optim.Optimizer],
        folder: Path,
        settings: Settings,
        limits: Limits,
    ) -> None:
        self.data, self.main, self.by = data, main, by
        self.folder, self.settings, self.limits = folder, settings, limits
        self.device = torch.device(limits.device)
        self.model: Any = model.to(self.device)
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = make_optimizer(parameters, lr=settings.learning_rate)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: factor(step, settings.lr_warmup_steps)
        )
        self.state = State()
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / "last.pt").exists():
            self._restore()

    def fit(self, stop: Stop | None = None) -> None:
        """Train to the last epoch, or until none has been better for so long.

        Raises:
            SystemExit: it was asked to stop, and what it has is saved.
            FloatingPointError: the loss or a weight is not finite. What was saved before is kept.
        """
        state, stop = self.state, stop or Stop()
        if not self.finished:
            (self.folder / RESULTS).unlink(missing_ok=True)
        while not self.finished:
            self._train_epoch(stop)
            self._require_finite()
            loss = state.loss_sum / state.batch
            figures = self.evaluate("validation")[self.main]
            now = metrics.score(figures, self.by)
            if now > state.best_score:
                state.best_score, state.best_epoch = now, state.epoch
                _save({"model": self.model.state_dict()}, self.folder / "best.pt")
            state.history.append({"epoch": state.epoch + 1, "loss": loss, **figures})
            tqdm.write(self._line(figures, loss))
            state.epoch, state.batch, state.loss_sum = state.epoch + 1, 0, 0.0
            self.save()
            self._write_history()
            if stop.asked and not self.finished:
                self._leave()

    @property
    def finished(self) -> bool:
        """Whether there is nothing left to train."""
        waited = self.state.epoch - 1 - self.state.best_epoch
        return self.state.epoch >= self.limits.epochs or (
            self.state.epoch > 0 and waited >= self.limits.patience
        )

    def load_best(self) -> None:
        """The weights of the best epoch.

        Raises:
            FloatingPointError: there is none, since no epoch's figure is a number.
        """
        if self.state.best_epoch < 0:
            raise FloatingPointError(
                f"{self.folder}: no epoch of {self.state.epoch} was better than none: the "
                f"validation's {self.by} is not a number in any of them"
            )
        state = torch.load(self.folder / "best.pt", map_location="cpu", weights_only=True)
        self.model.load_state_dict(state["model"])

    @torch.no_grad()
    def evaluate(self, split: str) -> Figures:
        """The figures of each set of logits, in eval mode."""
        dataset: Dataset[Any] = getattr(self.data, split)
        regression = self.by == "mae"
        self.model.eval()
        predicted: dict[str, list[Tensor]] = {}
        labels = []
        size = self.settings.batch_size
        rows = [list(range(i, min(i + size, len(dataset)))) for i in range(0, len(dataset), size)]  # type: ignore[arg-type]
        for inputs, label in self._batches(dataset, rows):
            with self._autocast():
                logits = self.model.predict(inputs)
            for name, each in logits.items():
                predicted.setdefault(name, []).append(each)
            labels.append(label)
        self.model.train()
        measure = metrics.of_sentiment if regression else metrics.of_classes
        truth = torch.cat(labels).cpu()
        return {name: measure(metrics.gathered(x), truth) for name, x in predicted.items()}

    def save(self) -> None:
        """Everything that the rest of the run depends on."""
        content: dict[str, Any] = {
            "settings": asdict(self.settings),
            "state": asdict(self.state),
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": {"last_epoch": self.scheduler.last_epoch},
            "generators": {"cpu": torch.get_rng_state()},
        }
        if self.device.type == "cuda":
            content["generators"]["cuda"] = torch.cuda.get_rng_state(self.device)
        _save(content, self.folder / "last.pt")

    def _train_epoch(self, stop: Stop) -> None:
        state, dataset = self.state, self.data.train
        dataset.set_epoch(state.epoch)  # type: ignore[attr-defined]
        rows = _order(len(dataset), self.settings, state.epoch)  # type: ignore[arg-type]
        left = rows[state.batch :]
        # on the device, so that no step waits for it
        losses = torch.full((), state.loss_sum, device=self.device)
        self.model.train()
        bar = tqdm(
            self._batches(dataset, left),
            desc=f"{self.folder.name} {state.epoch + 1}",
            initial=state.batch,
            total=len(rows),
            leave=False,
            disable=None,  # where nobody watches
        )
        for inputs, labels in bar:
            losses += self._step(inputs, labels)
            state.batch += 1
            due = state.batch % self.limits.save_every == 0
            if (due or stop.asked) and state.batch < len(rows):
                state.loss_sum = losses.item()
                self._require_finite()
                self.save()
                if stop.asked:
                    bar.close()
                    self._leave()
        state.loss_sum = losses.item()

    def _require_finite(self) -> None:
        """Before anything is saved: a finite loss can have a gradient that is not."""
        state, path = self.state, self.folder / "last.pt"
        wrong = ""
        if not math.isfinite(state.loss_sum):
            wrong = f"the loss of epoch {state.epoch + 1} is {state.loss_sum}"
        else:
            for name, x in self.model.state_dict().items():
                if x.is_floating_point() and not bool(x.isfinite().all()):
                    wrong = f"{name} is not finite in epoch {state.epoch + 1}"
                    break
        if wrong:
            kept = f"{path} is kept as it was before" if path.exists() else "nothing was saved yet"
            raise FloatingPointError(f"{wrong}, after {state.batch} steps of it; {kept}")

    def _step(self, inputs: list[Tensor], labels: Tensor) -> Tensor:  # []
        with self._autocast():
            loss = self.model(inputs, labels)
        self.optimizer.zero_grad()
        loss.backward()
        if self.settings.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.scheduler.step()
        return loss.detach()

    def _batches(
        self, dataset: Dataset[Any], rows: list[list[int]]
    ) -> Iterator[tuple[list[Tensor], Tensor]]:
        loader = DataLoader(
            dataset,
            batch_sampler=rows,
            num_workers=self.limits.workers,
            collate_fn=self.data.collate,
            pin_memory=self.device.type == "cuda",
            # or else it would draw the workers' seed from torch's own generator
            generator=torch.Generator(),
        )
        for inputs, labels in loader:
            yield (
                [x.to(self.device, non_blocking=True) for x in inputs],
                labels.to(self.device, non_blocking=True),
            )

    def _autocast(self) -> torch.autocast:
        on = self.settings.amp
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=on)

    def _leave(self) -> NoReturn:
        raise SystemExit(
            f"Stopped in epoch {self.state.epoch + 1}; saved in {self.folder}. "
            "The same command goes on."
        )

    def _restore(self) -> None:
        path = self.folder / "last.pt"
        content = torch.load(path, map_location="cpu", weights_only=True)
        other = differences(content["settings"], self.settings)
        if other:
            raise ValueError(f"{path} was made with {other}; give another folder with --out")
        self.model.load_state_dict(content["model"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.scheduler.last_epoch = content["scheduler"]["last_epoch"]
        self.state = State(**content["state"])
        torch.set_rng_state(content["generators"]["cpu"])
        if self.device.type == "cuda" and "cuda" in content["generators"]:
            torch.cuda.set_rng_state(content["generators"]["cuda"], self.device)

    def _line(self, figures: dict[str, float], loss: float) -> str:
        best = "no best one yet"
        if self.state.best_epoch >= 0:
            score = abs(self.state.best_score)
            best = f"best {score:.4f} in epoch {self.state.best_epoch + 1}"
        return (
            f"{self.folder.name}, epoch {self.state.epoch + 1}: loss {loss:.4f}, validation "
            f"{self.by} {figures[self.by]:.4f} ({best})"
        )

    def _write_history(self) -> None:
        with (self.folder / "history.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(self.state.history[0]))
            writer.writeheader()
            writer.writerows(self.state.history)


def _order(rows: int, settings: Settings, epoch: int) -> list[list[int]]:
    """The epoch's batches; a last one of a single row is left out, for batch norm and donors."""
    order = np.random.default_rng([settings.seed, epoch]).permutation(rows).tolist()
    size = settings.batch_size
    if size < 2:
        raise ValueError(f"batch_size (--batch-size) must be 2 or more, got {size}")
    batches = [order[i : i + size] for i in range(0, rows, size)]
    batches = [batch for batch in batches if len(batch) > 1]
    if not batches:
        raise ValueError(f"2 rows at least are needed to train on, and there are {rows}")
    return batches


def _save(content: Any, path: Path) -> None:
    """Whole or not at all, whatever happens meanwhile."""
    beside = path.with_suffix(".tmp")
    torch.save(content, beside)
    os.replace(beside, path)
