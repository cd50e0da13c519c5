"""One process and torch alone: Algorithm 1 on digits, with a warm-up and a checkpoint.

python examples/recipes/plain.py [--epochs 40] [--accumulate 1] [--checkpoint FILE]
"""

import argparse
from pathlib import Path

import torch
from digits import BATCH, HALVES, TwoHalves, accuracy, load, make_objective, report
from torch.utils.data import DataLoader

from mcr_fast import MCRMonitor


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--accumulate", type=int, default=1, help="batches of one step")
    parser.add_argument("--checkpoint", type=Path, help="go on from here if it exists; saved after")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.device == "cpu":
        torch.set_num_threads(1)  # layers this small gain nothing from more
    torch.manual_seed(0)
    train, test = load()
    loader = DataLoader(train, batch_size=BATCH, shuffle=True, drop_last=True)
    model = TwoHalves(make_objective(warmup=100)).to(arguments.device)
    # those of L_CEB's head too, if it has a weight: they are the objective's
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    monitor = MCRMonitor(HALVES, every=20)
    monitor.watch(model.objective)
    first = 0
    if arguments.checkpoint and arguments.checkpoint.exists():
        state = torch.load(arguments.checkpoint, weights_only=True)
        model.load_state_dict(state["model"])  # where in its warm-up the objective is, too
        optimizer.load_state_dict(state["optimizer"])
        first = state["epoch"]
    for epoch in range(first, arguments.epochs):
        model.objective.set_epoch(epoch)  # for a window in epochs
        for index, batch in enumerate(loader):
            out = model(*(x.to(arguments.device) for x in batch))
            (out.loss / arguments.accumulate).backward()
            if (index + 1) % arguments.accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
        if (epoch + 1) % 10 == 0 or epoch + 1 == arguments.epochs:
            print(report(epoch, monitor.read(), accuracy(model, test)))
    print(monitor.summary())
    if arguments.checkpoint:
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({**state, "epoch": arguments.epochs}, arguments.checkpoint)


if __name__ == "__main__":
    main()
