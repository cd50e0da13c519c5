"""Lightning Fabric: a loop of one's own, any device, any number of them, any precision.

python examples/recipes/fabric_loop.py [--epochs 40] [--accumulate 1] [--devices 1]
"""

import argparse

import torch
from digits import BATCH, HALVES, TwoHalves, accuracy, load, make_objective, report
from lightning.fabric import Fabric
from torch.utils.data import DataLoader

import mcr_fast


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--accumulate", type=int, default=1, help="batches of one step")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--precision", default="bf16-mixed")
    return parser.parse_args()


def step(fabric, model, optimizer, batches, clip=None) -> None:
    """One update from a few batches: the mean of their gradients over batches and processes.

    Fabric divides by nothing but the number of processes.
    """
    for index, batch in enumerate(batches):
        with fabric.no_backward_sync(model, enabled=index + 1 < len(batches)):
            out = model(*batch)
            fabric.backward(out.loss / len(batches))
    if clip is not None:
        fabric.clip_gradients(model, optimizer, max_norm=clip)
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    arguments = parse()
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(1)
    fabric = Fabric(
        accelerator="auto" if on_gpu else "cpu",
        devices=arguments.devices,
        precision=arguments.precision,
    )
    fabric.launch()
    fabric.seed_everything(0, verbose=False)
    train, test = load()
    model = TwoHalves(make_objective(warmup=100))
    objective = model.objective
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model, optimizer = fabric.setup(model, optimizer)
    loader = DataLoader(train, batch_size=BATCH // fabric.world_size, shuffle=True, drop_last=True)
    loader = fabric.setup_dataloaders(loader)
    torch.manual_seed(fabric.global_rank)  # every process draws permutations of its own
    monitor = mcr_fast.MCRMonitor(HALVES, every=20, process_group="world")
    monitor.watch(objective)
    for epoch in range(arguments.epochs):
        objective.set_epoch(epoch)  # for a window in epochs
        batches = []
        for batch in loader:
            batches.append(batch)
            if len(batches) == arguments.accumulate:
                step(fabric, model, optimizer, batches, clip=5.0)
                batches = []
        if (epoch + 1) % 10 == 0 or epoch + 1 == arguments.epochs:
            seen = monitor.read()  # on all processes: it averages over them
            fabric.print(report(epoch, seen, accuracy(model.module, test)))
    fabric.print(monitor.summary())


if __name__ == "__main__":
    main()
