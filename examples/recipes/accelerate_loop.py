"""Hugging Face accelerate, on which the published code trains: any device, any number of them.

    accelerate launch examples/recipes/accelerate_loop.py [--epochs 40] [--accumulate 1]

or plain python for one process, or torchrun for several. With `--config FILE`, a configuration of
the published code gives the weights.
"""

import argparse
import json
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from digits import (
    BATCH,
    HALVES,
    LATENT,
    NUM_CLASSES,
    TwoHalves,
    accuracy,
    load,
    make_objective,
    report,
)
from torch.utils.data import DataLoader

import mcr_fast


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--accumulate", type=int, default=1, help="batches of one step")
    parser.add_argument("--config", type=Path, help="JSON of the published code's option names")
    parser.add_argument("--mixed-precision", default="no", choices=["no", "bf16", "fp16"])
    parser.add_argument("--cpu", action="store_true")
    return parser.parse_args()


def objective_of(config: Path | None, group: object) -> mcr_fast.MCRObjective:
    """With L_Con over the rows of all processes."""
    if config is None:
        return make_objective(group, warmup=100)
    # the sizes are this model's; all else, such as the window, is the configuration's
    sizes = {"latent_dims": [LATENT, LATENT], "num_classes": NUM_CLASSES}
    return mcr_fast.MCRObjective.from_released_config(
        json.loads(config.read_text()), **sizes, process_group=group
    )


def train_batch(accelerator, model, optimizer, batch) -> None:
    """One batch; the optimizer steps with the last one of an accumulation.

    `accelerator.backward` divides by the number of batches, the data-parallel wrapper by that of
    processes: `out.loss` goes in as it is, and every part of it counts once.
    """
    with accelerator.accumulate(model):
        out = model(*batch)
        accelerator.backward(out.loss)
        optimizer.step()
        optimizer.zero_grad()


def main() -> None:
    arguments = parse()
    accelerator = Accelerator(
        gradient_accumulation_steps=arguments.accumulate,
        mixed_precision=arguments.mixed_precision,
        cpu=arguments.cpu,
    )
    if accelerator.device.type == "cpu":
        torch.set_num_threads(1)
    set_seed(0)
    train, test = load()
    loader = DataLoader(
        train, batch_size=BATCH // accelerator.num_processes, shuffle=True, drop_last=True
    )
    group = torch.distributed.group.WORLD if accelerator.num_processes > 1 else None
    model = TwoHalves(objective_of(arguments.config, group))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    inner = accelerator.unwrap_model(model)
    monitor = mcr_fast.MCRMonitor(HALVES, every=20, process_group=group)
    monitor.watch(inner.objective)
    for epoch in range(arguments.epochs):
        inner.objective.set_epoch(epoch)  # for a window in epochs
        for batch in loader:
            train_batch(accelerator, model, optimizer, batch)
        if (epoch + 1) % 10 == 0 or epoch + 1 == arguments.epochs:
            seen = monitor.read()  # on all processes: it averages over them
            accelerator.print(report(epoch, seen, accuracy(inner, test)))
    accelerator.print(monitor.summary())
    accelerator.end_training()


if __name__ == "__main__":
    main()
