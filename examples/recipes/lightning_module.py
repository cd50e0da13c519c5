"""Lightning: bf16-mixed precision, clipping, accumulation, and the monitor as a callback.

    python examples/recipes/lightning_module.py [--epochs 40] [--accumulate 1] [--devices 1]

`import pytorch_lightning as pl` serves as well.
"""

import argparse
import logging

import lightning.pytorch as pl
import torch
from digits import BATCH, HALVES, TwoHalves, accuracy, load, make_objective
from torch.utils.data import DataLoader

import mcr_fast
from mcr_fast.monitor.lightning import MCRCallback


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--accumulate", type=int, default=1, help="batches of one step")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--precision", default="bf16-mixed")
    return parser.parse_args()


class DigitsModule(pl.LightningModule):
    """The model holds the objective; Lightning divides its loss by the batches of a step."""

    def __init__(self, objective: mcr_fast.MCRObjective) -> None:
        super().__init__()
        self.model = TwoHalves(objective)

    def training_step(self, batch, _) -> torch.Tensor:
        out = self.model(*batch)
        self.log("loss", out.loss, on_step=False, on_epoch=True)
        return out.loss

    def on_fit_start(self) -> None:
        torch.manual_seed(self.global_rank)  # every process draws permutations of its own

    def on_train_epoch_start(self) -> None:
        self.model.objective.set_epoch(self.current_epoch)  # for a window in epochs

    def validation_step(self, batch, _) -> None:
        left, right, labels = batch
        hits = (self.model.predict(left, right).argmax(1) == labels).float()
        self.log("accuracy", hits.mean(), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def make_trainer(arguments: argparse.Namespace, **options: object) -> pl.Trainer:
    return pl.Trainer(
        max_epochs=arguments.epochs,
        accelerator="auto" if torch.cuda.is_available() else "cpu",
        devices=arguments.devices,
        precision=arguments.precision,
        gradient_clip_val=5.0,
        accumulate_grad_batches=arguments.accumulate,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )


def main() -> None:
    arguments = parse()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    pl.seed_everything(0, verbose=False)
    train, test = load()
    module = DigitsModule(make_objective(warmup=100))
    monitor = mcr_fast.MCRMonitor(HALVES, every=20, process_group="world")
    trainer = make_trainer(
        arguments,
        callbacks=[MCRCallback(monitor)],
        log_every_n_steps=1,
        check_val_every_n_epoch=10,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
    )
    train_loader = DataLoader(
        train, batch_size=BATCH // trainer.world_size, shuffle=True, drop_last=True
    )
    trainer.fit(module, train_loader, DataLoader(test, batch_size=len(test)))
    if trainer.is_global_zero:
        for record in monitor.epochs[9::10] or monitor.epochs:
            sides = ", ".join(f"{name} {record[f'importance/{name}']:.2f}" for name in HALVES)
            print(f"epoch {record['epoch'] + 1:3}: loss {record['loss']:.3f}; importance: {sides}")
        print(f"test accuracy {accuracy(module.model, test):.1%}")
        print(monitor.summary())


if __name__ == "__main__":
    main()
